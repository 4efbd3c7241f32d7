/**
 * Pipelines whose requests depend on each other, sent before anything is answered: what a request makes of names
 * and statements that an earlier one may or may not have changed, message by message as PostgreSQL answers it.
 */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { FLUSH, SYNC } from '../src/protocol/message-writer.ts';
import { Random, seedOf } from '../test/support/random.ts';
import type { ScriptedClient } from '../test/support/scripted-client.ts';
import { B, batch, C, D, E, P, partly, Q, q, x } from './support/conversation.ts';
import { type Conversation, describeConversations } from './support/model.ts';
import { makeWorld, type PoolKind, type World } from './support/world.ts';

const run = (name: string): ReturnType<typeof batch> => batch(1, B('', name), D('P', ''), E(''), SYNC);
const prepared = (name: string, sql: string): ReturnType<typeof batch> => batch(1, P(name, sql), SYNC);
const BAD = P('bad', 'SELEC');

const NAMES: Conversation[] = [
  {
    name: 'a name whose Parse was skipped is free for the next request of the same write',
    named: true,
    steps: [
      batch(2, BAD, P('s1', "SELECT 'skipped'"), SYNC, P('s1', "SELECT 'taken'"), SYNC),
      run('s1'),
      batch(2, BAD, P('s2', "SELECT 'taken'"), SYNC, P('s2', "SELECT 'taken'"), B('', 's2'), E(''), SYNC),
      run('s2'),
      batch(3, P('s3', 'SELEC'), SYNC, P('s3', 'SELECT 3'), SYNC, P('s3', 'SELECT 33'), SYNC),
      run('s3'),
    ],
  },
  {
    name: 'a name that is taken by the request before is taken, one that it gave up is free',
    named: true,
    steps: [
      batch(2, P('s1', 'SELECT 1'), SYNC, P('s1', 'SELECT 2'), SYNC),
      batch(2, C('S', 's1'), SYNC, P('s1', 'SELECT 3'), SYNC),
      run('s1'),
      batch(2, P('s2', 'SELECT 4'), C('S', 's2'), SYNC, P('s2', 'SELECT 5'), B('', 's2'), E(''), SYNC),
      batch(2, C('S', 's2'), SYNC, B('', 's2'), E(''), SYNC),
    ],
  },
  {
    name: 'a Close that was skipped leaves the name to the next request of the same write',
    named: true,
    steps: [
      prepared('s1', "SELECT 'kept'"),
      batch(2, BAD, C('S', 's1'), SYNC, P('s1', "SELECT 'new'"), SYNC),
      run('s1'),
      batch(3, BAD, C('S', 's1'), SYNC, B('', 's1'), E(''), SYNC, D('S', 's1'), SYNC),
      run('s1'),
      batch(2, BAD, C('S', 's1'), SYNC, C('S', 's1'), P('s1', "SELECT 'newer'"), SYNC),
      run('s1'),
    ],
  },
  {
    name: 'a known text prepared behind an error exists neither then nor for the request behind',
    named: true,
    steps: [
      prepared('s1', "SELECT 'known'"),
      run('s1'),
      batch(2, BAD, P('s2', "SELECT 'known'"), SYNC, B('', 's2'), E(''), SYNC),
      batch(1, P('s2', "SELECT 'known'"), SYNC),
      run('s2'),
    ],
  },
  {
    name: 'a bad text errs where it is parsed, however often it is, and names stay free',
    named: true,
    steps: [
      batch(2, P('s1', 'SELEC 1'), SYNC, P('s2', 'SELEC 1'), B('', 's2'), E(''), SYNC),
      batch(3, P('s1', 'SELEC 1'), SYNC, P('s1', 'SELEC 1'), SYNC, P('', 'SELEC 1'), B('', ''), SYNC),
      batch(2, P('s1', 'SELECT FROM nowhere'), SYNC, P('s2', 'SELECT FROM nowhere'), D('S', 's2'), SYNC),
      run('s1'),
      run('s2'),
    ],
  },
  {
    name: 'a statement whose Parse was skipped on the way is there for the request behind',
    named: true,
    steps: [
      prepared('s1', "SELECT 'one'"),
      prepared('s2', "SELECT 'two'"),
      ...[1, 2, 3, 4].flatMap((n) => [
        batch(2, BAD, P('t', `SELECT ${n}`), SYNC, P(`t${n}`, `SELECT ${n}`), B('', `t${n}`), E(''), SYNC),
        batch(2, BAD, B('', 's1'), E(''), SYNC, B('', 's1'), E(''), SYNC),
        batch(
          3,
          P('', 'SELECT 1/0'),
          B('', ''),
          E(''),
          B('', 's2'),
          E(''),
          SYNC,
          D('S', 's2'),
          SYNC,
          B('', 's2'),
          E(''),
          SYNC,
        ),
        run(`t${n}`),
      ]),
    ],
  },
  {
    name: 'what is prepared under a new name behind a DEALLOCATE ALL of the same request stays',
    named: true,
    steps: [
      prepared('s1', 'SELECT 1'),
      batch(1, P('', 'DEALLOCATE ALL'), B('', ''), E(''), P('s2', 'SELECT 2'), P('s3', 'SELECT 1'), SYNC),
      run('s1'),
      run('s2'),
      run('s3'),
    ],
  },
];

const UNNAMED: Conversation[] = [
  {
    name: 'an unnamed statement outlives a Query that is skipped',
    steps: [
      batch(1, P('', "SELECT 'kept'"), SYNC),
      batch(1, BAD, Q('SELECT 1'), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(1, BAD, Q('SET work_mem = 100'), Q('SELECT 2'), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(2, BAD, Q('SELECT 1'), SYNC, B('', ''), E(''), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(2, P('', 'SELECT 3'), Q('SELECT 4'), B('', ''), SYNC),
      batch(1, B('', ''), E(''), SYNC),
    ],
  },
  {
    name: 'of several unnamed statements in a write the last that was parsed is the one',
    steps: [
      batch(1, P('', "SELECT 'old'"), SYNC),
      batch(2, BAD, P('', "SELECT 'skipped'"), SYNC, P('', "SELECT 'new'"), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(1, B('', ''), D('P', ''), E(''), SYNC),
      batch(3, BAD, P('', 'SELECT 5'), SYNC, BAD, P('', 'SELECT 6'), C('S', ''), SYNC, D('S', ''), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(2, P('', 'SELECT 7'), SYNC, P('', 'SELEC'), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(2, P('', 'SELEC'), SYNC, P('', 'SELECT 8'), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(2, BAD, C('S', ''), SYNC, B('', ''), E(''), SYNC),
      batch(2, C('S', ''), SYNC, B('', ''), E(''), SYNC),
    ],
  },
  {
    name: 'an unnamed statement behind an error is not there for the request behind',
    steps: [
      batch(1, P('', "SELECT 'old'"), SYNC),
      batch(2, BAD, P('', "SELECT 'skipped'"), SYNC, B('', ''), E(''), SYNC),
      batch(
        2,
        P('', "SELECT 'first'"),
        B('', ''),
        E(''),
        BAD,
        P('', 'SELECT 2'),
        SYNC,
        B('', ''),
        E(''),
        SYNC,
      ),
      batch(2, P('', 'SELECT 1/0'), B('', ''), E(''), P('', 'SELECT 2'), SYNC, B('', ''), E(''), SYNC),
      batch(2, P('', 'SELECT 9'), B('', ''), E(''), P('', 'SELECT 10'), SYNC, B('', ''), E(''), SYNC),
      batch(1, B('', ''), E(''), SYNC),
    ],
  },
];

const SKIPPED: Conversation[] = [
  {
    name: 'what is sent behind the Sync that ends the skipping is read again',
    steps: [
      partly(1, BAD, FLUSH),
      batch(2, SYNC, Q('SELECT 1')),
      partly(1, BAD, FLUSH),
      batch(2, P('', 'SELECT 2'), SYNC, P('', 'SELECT 3'), B('', ''), E(''), SYNC),
    ],
  },
  {
    name: 'a string that is skipped behind an error drops nothing, and holds nobody up',
    named: true,
    steps: [
      prepared('s1', "SELECT 'kept'"),
      batch(1, BAD, Q('DEALLOCATE ALL'), SYNC),
      run('s1'),
      batch(1, BAD, Q('DISCARD ALL'), Q('SELECT 1'), SYNC),
      run('s1'),
      batch(1, BAD, Q('DEALLOCATE s1'), Q('SELECT 2'), SYNC),
      run('s1'),
      batch(2, BAD, Q('SELECT 2; DEALLOCATE s1'), SYNC, Q('SELECT 3')),
      run('s1'),
      batch(2, BAD, P('', 'DISCARD ALL'), B('', ''), E(''), SYNC, B('', 's1'), E(''), SYNC),
      q('SELECT current_user = session_user OR true'),
      run('s1'),
    ],
  },
  {
    name: 'a taken name skips the strings behind it up to the Sync, whatever they deallocate',
    named: true,
    steps: [
      prepared('s1', "SELECT 'kept'"),
      batch(1, P('s1', 'SELECT 1'), Q('DEALLOCATE nowhere; SELECT 1'), Q('SELECT 2'), SYNC),
      batch(1, P('s1', 'SELECT 1'), Q('SET work_mem = 100'), Q('SELECT 2'), SYNC),
      batch(1, P('s1', 'SELECT 1'), Q('DEALLOCATE s1; SELECT 1'), Q('SELECT 2'), SYNC),
      run('s1'),
    ],
  },
  {
    name: 'a string that deallocates does not end the transaction of the pipeline in front of it',
    named: true,
    writes: true,
    steps: [
      prepared('s1', "SELECT 'kept'"),
      batch(
        1,
        P('', "INSERT INTO items VALUES (200, 'x')"),
        B('', ''),
        E(''),
        Q('DEALLOCATE s1; SELECT 1/0'),
      ),
      q('SELECT count(*) FROM items'),
      run('s1'),
      batch(
        1,
        P('', "INSERT INTO items VALUES (201, 'x')"),
        B('', ''),
        E(''),
        Q('DEALLOCATE nowhere; SELECT 1'),
      ),
      q('SELECT count(*) FROM items'),
      prepared('s2', "SELECT 'also'"),
      batch(
        1,
        P('', "INSERT INTO items VALUES (202, 'x')"),
        B('', ''),
        E(''),
        Q('SELECT 1/0; DEALLOCATE s2'),
      ),
      run('s2'),
      q('DEALLOCATE s2'),
      q('SELECT count(*) FROM items'),
    ],
  },
  {
    name: 'settings that a skipped string would have reset stay as they are',
    startup: { application_name: 'from startup', options: '-c work_mem=5MB' },
    steps: [
      q("SET work_mem = '6MB'; SET application_name = 'later'"),
      batch(1, BAD, Q('RESET ALL'), Q('SELECT 1'), SYNC),
      q('SHOW work_mem'),
      batch(1, BAD, Q('DISCARD ALL'), Q('SELECT 1'), SYNC),
      q('SHOW application_name'),
      q('RESET work_mem; SELECT 1/0'),
      q('SHOW work_mem'),
      q('RESET application_name; SELECT 1/0'),
      q('SHOW application_name'),
      q('BEGIN; RESET ALL; COMMIT; SELECT 1/0'),
      q('SHOW work_mem'),
      q('SHOW application_name'),
      batch(3, Q("SET application_name = 'again'"), Q('RESET application_name'), Q('SHOW application_name')),
      x('RESET application_name'),
      q('RESET application_name'),
      q('SHOW application_name'),
      q('BEGIN'),
      q("SET application_name = 'inside'"),
      q('RESET ALL'),
      q('SHOW application_name'),
      q('ROLLBACK'),
      q('SHOW application_name'),
      batch(2, P('', 'SELECT 1'), B('', ''), E(''), Q('DISCARD ALL'), Q('SHOW application_name')),
      q('SHOW work_mem'),
    ],
  },
];

describeConversations([...NAMES, ...UNNAMED, ...SKIPPED]);

const seed = seedOf('PIPELINE_SEED');

/** Texts that are good, bad when run, bad when parsed. */
const TEXTS = ["SELECT 'a'", "SELECT 'b'", 'SELECT 1/0', 'SELEC', 'SELECT FROM nowhere'];
const STATEMENTS = ['s1', 's2', ''];
const STRINGS = [
  'SELECT 1',
  'SELECT 1/0',
  'SELEC',
  'DEALLOCATE s1',
  'DEALLOCATE ALL',
  'SELECT 2; DEALLOCATE s2',
  'BEGIN',
  'ROLLBACK',
  'RESET ALL',
];

function randomMessages(random: Random): Buffer[] {
  const name = random.pick(STATEMENTS);
  switch (random.below(5)) {
    case 0:
      return [P(name, random.pick(TEXTS))];
    case 1:
      return [P(name, random.pick(TEXTS)), B('', name), E('')];
    case 2:
      return [C('S', name)];
    default:
      return [B('', name), D('P', ''), E('')];
  }
}

/** A string, a statement that begins or ends a transaction, or messages up to Sync, with strings that are skipped. */
function randomRequest(random: Random): Buffer[] {
  const kind = random.below(8);
  if (kind < 2) return [Q(random.pick(STRINGS))];
  if (kind === 2) {
    const name = random.pick(STATEMENTS);
    return [P(name, random.pick(['BEGIN', 'ROLLBACK'])), B('', name), E(''), SYNC];
  }
  const messages = Array.from({ length: 1 + random.below(4) }, () => randomMessages(random)).flat();
  if (random.below(3) > 0) return [...messages, SYNC];
  return [
    BAD,
    ...messages.flatMap((each) => (random.below(3) > 0 ? [each] : [each, Q(random.pick(STRINGS))])),
    SYNC,
  ];
}

function readable(bytes: Buffer): string {
  return bytes.toString('latin1').replaceAll(/[\0-\x1f]+/g, ' ');
}

describe(`random pipelines (seed ${seed})`, () => {
  let world: World;
  beforeAll(async () => {
    world = await makeWorld();
  });
  afterAll(() => world?.drop());

  /** Everything that comes back up to the answer to a string that the round alone knows. */
  const answers = async (client: ScriptedClient, bytes: Buffer, mark: string): Promise<string[]> => {
    client.send(bytes, Q('ROLLBACK'), Q(`SELECT '${mark}'`));
    const lines: string[] = [];
    for (let marked = false; ; ) {
      const { type, body } = await client.readFrame().catch((error: Error) => {
        throw new Error(`${error.message} behind\n${lines.join('\n')}\nof\n${readable(bytes)}`);
      });
      let line = `${type} ${body.toString('latin1')}`;
      // Whether a transaction has failed is not known while the answer is on its way, so that a statement may be
      // prepared in front of its Bind: the same refusal, from another line of PostgreSQL.
      if (type === 'E' && line.includes('C25P02')) line = line.replace(/F[\w.]+\0L\d+\0R\w+\0/, '');
      if (type !== 'S') lines.push(line);
      marked ||= type === 'D' && line.includes(mark);
      if (marked && type === 'Z') return lines;
    }
  };

  for (const kind of ['static', 'set_role'] as PoolKind[]) {
    for (const prepared of ['extended', 'extended_anonymous']) {
      it(`are answered as PostgreSQL answers them, ${kind}, ${prepared}`, async () => {
        const random = new Random(seed);
        const pooler = await world.pooler(kind, { default_pool_size: 2, prepared_statements: prepared });
        const startup = { application_name: 'at startup' };
        const direct = await world.direct(world.alice, startup);
        const client = await world.login(pooler, world.alice, startup);
        const other = await world.login(pooler, world.alice);
        try {
          for (let round = 0; round < 250; round++) {
            const parts = Array.from({ length: 1 + random.below(6) }, () => randomRequest(random)).flat();
            const bytes = Buffer.concat(parts);
            const mark = `mark ${round}`;
            const wanted = await answers(direct, bytes, mark);
            // Another connection may come next, and an unnamed statement of somebody else be on it.
            if (random.below(3) === 0) await other.query('BEGIN');
            else if (random.below(2) === 0) other.send(P('', "SELECT 'not yours'"), SYNC);
            const got = await answers(client, bytes, mark);
            if (got.join() !== wanted.join())
              expect([round, readable(bytes), got]).toEqual([round, '', wanted]);
            other.send(Q('ROLLBACK'), Q("SELECT 'rest'"));
            while (!(await other.readReply()).rows.flat().includes('rest'));
          }
        } finally {
          for (const each of [direct, client, other]) each.destroy();
          await pooler.stop();
        }
      });
    }
  }
});
