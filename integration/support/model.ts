/**
 * Holds every conversation of a table with PostgreSQL itself and with poolers of each kind and mode, while another
 * client of the same role uses the same server connections in between, and compares byte by byte. After the client
 * left, every server connection of the pool must be as clean as a new one.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { encodeClose, encodeDescribe, encodeParse, SYNC } from '../../src/protocol/message-writer.ts';
import { asSuperuser } from '../../test/support/postgres.ts';
import type { ScriptedClient } from '../../test/support/scripted-client.ts';
import { converse, type Step } from './conversation.ts';
import type { RunningPooler } from './pooler.ts';
import { makeWorld, type PoolKind, untilPoolsRest, type World } from './world.ts';

export interface Conversation {
  /** A sentence with the trap in it. */
  readonly name: string;
  readonly steps: readonly Step[];
  /** It changes tables: they are made anew behind it. */
  readonly writes?: boolean;
  /** Needs named statements that live longer than a transaction: not promised with prepared_statements = disabled. */
  readonly named?: boolean;
  /** Startup parameters of the client. */
  readonly startup?: Record<string, string>;
  /**
   * It matters which server connection comes next: a pooler of its own with one connection and no other client. With
   * two the next request may get the other one, since under a role the first may still be cleaned.
   */
  readonly alone?: boolean;
  /** Not for pools that assume a role: there it is refused. */
  readonly staticOnly?: boolean;
}

interface Target {
  readonly kind: PoolKind;
  readonly mode: 'transaction' | 'session';
  readonly prepared: 'extended' | 'extended_anonymous' | 'disabled';
}

export const TARGETS: readonly Target[] = [
  { kind: 'static', mode: 'transaction', prepared: 'extended' },
  { kind: 'static', mode: 'transaction', prepared: 'extended_anonymous' },
  { kind: 'static', mode: 'transaction', prepared: 'disabled' },
  { kind: 'static', mode: 'session', prepared: 'extended' },
  { kind: 'set_role', mode: 'transaction', prepared: 'extended' },
  { kind: 'set_role', mode: 'transaction', prepared: 'extended_anonymous' },
  { kind: 'set_role', mode: 'session', prepared: 'extended' },
];

/** Two server connections: one may be pinned and the other clients still get through. */
const POOL_SIZE = 2;

const NOISY_SETTINGS = [
  "SET application_name = 'noise'",
  'SET search_path = pg_catalog',
  "SET TimeZone = 'Pacific/Auckland'",
  "SET work_mem = '3MB'",
  "SET datestyle = 'German'",
  "SET my.custom = 'noise'",
  'SET extra_float_digits = 0',
].join(';');

/** What a session could have left behind, as one row that must be the same on every connection of the pool. */
const LEFTOVERS = `SELECT current_user, coalesce(nullif(current_setting('role'), current_user), 'none'),
  current_setting('search_path'), current_setting('TimeZone'), current_setting('work_mem'),
  current_setting('DateStyle'), coalesce(nullif(current_setting('my.custom', true), ''), 'nothing'),
  current_setting('extra_float_digits'), current_setting('statement_timeout'),
  current_setting('client_min_messages'), current_setting('default_transaction_isolation'),
  current_setting('bytea_output'), current_setting('IntervalStyle'),
  (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_cursors WHERE name <> ''),
  (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'turnstile\\_%'),
  (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
  (SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND relnamespace = pg_my_temp_schema())`;

/** Declares the tests of all conversations for all targets. */
export function describeConversations(
  conversations: readonly Conversation[],
  only: readonly Target[] = TARGETS,
): void {
  let world: World;
  const models = new Map<Conversation, Promise<string[][]>>();

  beforeAll(async () => {
    world = await makeWorld();
  });
  afterAll(() => world?.drop());

  const hold = async (
    conversation: Conversation,
    client: ScriptedClient,
    between?: () => Promise<void>,
  ): Promise<string[][]> => {
    try {
      return await converse(client, conversation.steps, {
        between,
        aside: async (sql) => {
          await asSuperuser([sql.replaceAll('$alice', world.alice)], { database: world.database });
        },
      });
    } finally {
      client.destroy();
    }
  };

  let dirty = false;
  const tidy = async (conversation: Conversation): Promise<void> => {
    if (dirty) await world.reset();
    dirty = conversation.writes ?? false;
  };

  const modelOf = (conversation: Conversation): Promise<string[][]> => {
    let model = models.get(conversation);
    if (model === undefined) {
      model = (async () => {
        await tidy(conversation);
        const client = await world.direct(world.alice, conversation.startup);
        return hold(conversation, client);
      })();
      models.set(conversation, model);
    }
    return model;
  };

  for (const target of only) {
    describe(`${target.kind}, ${target.mode} mode, prepared_statements = ${target.prepared}`, () => {
      let pooler: RunningPooler;
      let noise: ScriptedClient;
      let witness: ScriptedClient;
      let clean: (string | null)[];

      beforeAll(async () => {
        pooler = await world.pooler(target.kind, {
          pooler_mode: target.mode,
          prepared_statements: target.prepared,
          default_pool_size: target.mode === 'session' ? POOL_SIZE + 2 : POOL_SIZE,
        });
        witness = await world.login(pooler, world.alice);
        clean = (await witness.query(LEFTOVERS)).rows[0]!;
        noise = await world.login(pooler, world.alice);
        await noise.query(NOISY_SETTINGS);
      });
      afterAll(async () => {
        noise?.destroy();
        witness?.destroy();
        await pooler?.stop();
      });

      const makeNoise = async (): Promise<void> => {
        const named =
          target.prepared === 'disabled'
            ? []
            : [encodeClose('S', 's1'), encodeParse('s1', "SELECT 'noise of s1'"), encodeDescribe('S', 's1')];
        noise.send(...named, encodeParse('', "SELECT 'noise', $1::int"), encodeDescribe('S', ''), SYNC);
        const reply = await noise.readReply();
        if (reply.error !== null) throw new Error(`the other client was hurt: ${reply.error.message}`);
      };

      for (const conversation of conversations) {
        if (conversation.named && target.prepared === 'disabled' && target.mode === 'transaction') continue;
        if (conversation.staticOnly && target.kind !== 'static') continue;
        it(conversation.name, async () => {
          const model = await modelOf(conversation);
          await tidy(conversation);
          if (conversation.alone) return holdAlone(conversation, model);
          const client = await world.login(pooler, world.alice, conversation.startup ?? {});
          const logged = pooler.log.length;
          const transcript = await hold(conversation, client, makeNoise).catch((error: Error) => [
            [error.message, ...pooler.log.slice(logged).map((line) => JSON.stringify(line))],
          ]);
          expect(transcript.map(inOrder)).toEqual(model.map(inOrder));
          await checkLeftovers();
        });
      }

      const holdAlone = async (conversation: Conversation, model: string[][]): Promise<void> => {
        const single = await world.pooler(target.kind, {
          pooler_mode: target.mode,
          prepared_statements: target.prepared,
          default_pool_size: 1,
        });
        try {
          const client = await world.login(single, world.alice, conversation.startup ?? {});
          expect((await hold(conversation, client)).map(inOrder)).toEqual(model.map(inOrder));
          const next = await world.login(single, world.alice);
          expect((await next.query(LEFTOVERS)).rows[0]).toEqual(clean);
          next.destroy();
        } finally {
          await single.stop();
        }
      };

      /** Looks at every connection of the pool at the same moment. */
      const checkLeftovers = async (): Promise<void> => {
        if (target.mode === 'session') {
          const client = await world.login(pooler, world.alice);
          expect((await client.query(LEFTOVERS)).rows[0]).toEqual(clean);
          client.destroy();
          return;
        }
        await untilPoolsRest(pooler);
        await noise.query('BEGIN');
        expect((await witness.query(LEFTOVERS)).rows[0]).toEqual(clean);
        await witness.query('BEGIN');
        await noise.query('COMMIT');
        const second = await world.login(pooler, world.alice);
        expect((await second.query(LEFTOVERS)).rows[0]).toEqual(clean);
        second.destroy();
        await witness.query('COMMIT');
      };
    });
  }
}

/** Settings that are reported together come in the order of PostgreSQL's tables, which no client can rely on. */
function inOrder(lines: readonly string[]): string[] {
  const ordered: string[] = [];
  let settings: string[] = [];
  for (const line of [...lines, '']) {
    if (line.startsWith('S ')) {
      settings.push(line);
      continue;
    }
    ordered.push(...settings.sort(), line);
    settings = [];
  }
  return ordered;
}
