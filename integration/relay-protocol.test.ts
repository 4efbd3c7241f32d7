/** Simple and extended protocol through the pooler, message by message as PostgreSQL itself answers them. */
import { COPY_DONE, encodeCopyFail, FLUSH, SYNC } from '../src/protocol/message-writer.ts';
import { frame } from '../test/support/scripted-client.ts';
import { B, batch, C, D, d, E, inPieces, P, partly, Q, q, x } from './support/conversation.ts';
import { type Conversation, describeConversations } from './support/model.ts';

const LONG = 'x'.repeat(20_000);

/** FunctionCall of int4pl(int4, int4), text in, text out. */
function functionCall(oid: number, values: readonly string[]): Buffer {
  const head = Buffer.alloc(8);
  head.writeUInt32BE(oid, 0);
  head.writeInt16BE(0, 4);
  head.writeInt16BE(values.length, 6);
  const parts: Buffer[] = [head];
  for (const value of values) {
    const length = Buffer.alloc(4);
    length.writeInt32BE(Buffer.byteLength(value), 0);
    parts.push(length, Buffer.from(value));
  }
  return frame('F', Buffer.concat([...parts, Buffer.from([0, 0])]));
}

const SIMPLE: Conversation[] = [
  {
    name: 'selects, empty queries, comments and semicolons alone',
    steps: [
      q('SELECT 1 AS one, NULL, $$a$$'),
      q(''),
      q(';;'),
      q('-- nothing'),
      q('/* nothing */ ;'),
      q('SELECT'),
    ],
  },
  {
    name: 'several statements in one string give several results and one ReadyForQuery',
    steps: [q('SELECT 1; SELECT 2 AS two; SELECT name FROM items ORDER BY id')],
  },
  {
    name: 'an error in the middle of a string undoes what came before it in the string',
    writes: true,
    steps: [
      q("INSERT INTO items VALUES (10, 'ten'); SELECT 1/0; INSERT INTO items VALUES (11, 'eleven')"),
      q('SELECT count(*) FROM items'),
    ],
  },
  {
    name: 'a BEGIN in the middle of a string keeps the transaction open, a COMMIT inside ends it',
    writes: true,
    steps: [
      q("INSERT INTO items VALUES (10, 'ten'); BEGIN; INSERT INTO items VALUES (11, 'eleven')"),
      q('SELECT count(*) FROM items'),
      q("ROLLBACK; INSERT INTO items VALUES (12, 'twelve')"),
      q('SELECT id FROM items ORDER BY id'),
      q("BEGIN; INSERT INTO items VALUES (13, 'x'); COMMIT; SELECT 1/0"),
      q('SELECT id FROM items ORDER BY id'),
    ],
  },
  {
    name: 'syntax errors, unknown tables, failed transactions and what COMMIT says of them',
    steps: [
      q('SELEC 1'),
      q('SELECT * FROM nowhere'),
      q('BEGIN'),
      q('SELECT 1/0'),
      q('SELECT 1'),
      q('COMMIT'),
      q('COMMIT'),
      q('ROLLBACK'),
    ],
  },
  {
    name: 'savepoints',
    writes: true,
    steps: [
      q('BEGIN'),
      q("INSERT INTO items VALUES (20, 'a')"),
      q('SAVEPOINT one'),
      q("INSERT INTO items VALUES (20, 'b')"),
      q('ROLLBACK TO one'),
      q("INSERT INTO items VALUES (21, 'c')"),
      q('RELEASE one'),
      q('COMMIT AND CHAIN'),
      q('SELECT id FROM items ORDER BY id'),
      q('ROLLBACK'),
    ],
  },
  {
    name: 'notices and warnings come where they belong',
    steps: [
      q("DO $$ BEGIN RAISE NOTICE 'n %', 1; RAISE WARNING 'w'; END $$; SELECT 1"),
      x("SELECT pg_catalog.set_config('application_name', 'x', true)"),
      q('DROP TABLE IF EXISTS nowhere; SELECT 2'),
    ],
  },
  {
    name: 'an error with every field, from a function',
    steps: [
      q(
        "DO $$ BEGIN RAISE EXCEPTION USING message = 'm', detail = 'd', hint = 'h', errcode = 'UE001', column = 'c', table = 't', schema = 's'; END $$",
      ),
      q('SELECT 1'),
    ],
  },
  {
    name: 'several queries in one write are answered one by one, also behind an error',
    steps: [
      batch(4, Q('SELECT 1'), Q('SELECT 1/0'), Q('BEGIN'), Q('SELECT 2')),
      batch(2, Q('ROLLBACK'), Q('SELECT 3')),
    ],
  },
  {
    name: 'one byte at a time',
    steps: [
      inPieces(q('SELECT name FROM items ORDER BY id'), 1),
      inPieces(x('SELECT $1::text', ['abc']), 1),
      inPieces(batch(1, P('s9', 'SELECT $1::int'), B('', 's9', ['3']), E(''), C('S', 's9'), SYNC), 1),
    ],
  },
  {
    name: 'large values both ways',
    steps: [
      q(`SELECT length('${LONG}'), repeat('y', 300000)`),
      x('SELECT length($1), $1::text', [LONG.repeat(20)]),
      inPieces(x('SELECT length($1)', [LONG.repeat(3)]), 8_191),
      q(`SELECT '${LONG}' FROM generate_series(1, 30)`),
    ],
  },
];

const EXTENDED: Conversation[] = [
  {
    name: 'Parse, Bind, Describe, Execute, Sync with parameters',
    steps: [
      x('SELECT $1::int + $2::int AS sum', ['1', '2']),
      x('SELECT $1::text', [null]),
      x('SELECT name FROM items WHERE id = $1', ['2']),
      x(''),
      x('-- nothing'),
      x('SELECT 1; SELECT 2'),
    ],
  },
  {
    name: 'several Syncs in flight, each answered in its turn',
    steps: [
      batch(3, ...[1, 2, 3].flatMap((n) => [P('', `SELECT ${n}`), B('', ''), D('P', ''), E(''), SYNC])),
      batch(5, SYNC, SYNC, P('', 'SELECT 1'), SYNC, SYNC, B('', ''), E(''), SYNC),
    ],
  },
  {
    name: 'an error in the middle of a pipeline skips to its Sync and not further',
    writes: true,
    steps: [
      batch(
        3,
        P('', "INSERT INTO items VALUES (30, 'a')"),
        B('', ''),
        E(''),
        P('', 'SELECT 1/0'),
        B('', ''),
        E(''),
        P('', 'SELECT 1'),
        B('', ''),
        E(''),
        SYNC,
        P('', 'SELECT count(*) FROM items'),
        B('', ''),
        E(''),
        SYNC,
        Q('SELECT 3'),
      ),
      batch(2, P('', 'SELEC'), FLUSH, D('S', ''), SYNC, Q('SELECT 4')),
      batch(1, P('bad', 'SELEC'), B('', 'bad'), Q('SELECT 5'), C('S', 'bad'), SYNC),
    ],
  },
  {
    name: 'an implicit transaction of a pipeline commits at its Sync',
    writes: true,
    steps: [
      batch(
        2,
        P('', "INSERT INTO items VALUES (31, 'a')"),
        B('', ''),
        E(''),
        P('', "INSERT INTO items VALUES (32, 'b')"),
        B('', ''),
        E(''),
        SYNC,
        P('', 'SELECT count(*) FROM items'),
        B('', ''),
        E(''),
        SYNC,
      ),
    ],
  },
  {
    name: 'Flush makes PostgreSQL answer before the Sync',
    steps: [
      partly(3, P('', 'SELECT $1::int'), D('S', ''), FLUSH),
      partly(3, B('', '', ['7']), E(''), FLUSH),
      partly(1, P('', 'SELECT 9'), FLUSH),
      batch(1, SYNC),
      partly(1, P('', 'SELEC'), FLUSH),
      batch(1, B('', ''), SYNC),
      q('SELECT 1'),
    ],
  },
  {
    name: 'portals with row limits, suspended and resumed inside a transaction',
    steps: [
      q('BEGIN'),
      batch(1, P('', 'SELECT g FROM generate_series(1, 7) g'), B('p1', ''), E('p1', 3), SYNC),
      batch(1, E('p1', 3), SYNC),
      batch(1, D('P', 'p1'), E('p1', 0), SYNC),
      batch(1, E('p1', 0), SYNC),
      batch(1, C('P', 'p1'), C('P', 'never'), SYNC),
      batch(1, E('p1', 0), SYNC),
      q('ROLLBACK'),
    ],
  },
  {
    name: 'a portal with a row limit in one pipeline, and gone after it',
    steps: [
      batch(
        1,
        P('', 'SELECT g FROM generate_series(1, 5) g'),
        B('', ''),
        E('', 2),
        E('', 2),
        E('', 2),
        E('', 2),
        SYNC,
      ),
      batch(1, E(''), SYNC),
      batch(1, B('p2', ''), SYNC),
      batch(1, E('p2'), SYNC),
    ],
  },
  {
    name: 'an unnamed statement outlives its Sync although others used the server connection',
    steps: [
      batch(1, P('', 'SELECT $1::int * 2'), D('S', ''), SYNC),
      batch(1, B('', '', ['4']), E(''), SYNC),
      batch(1, B('', '', ['5']), E(''), SYNC),
      batch(1, D('S', ''), SYNC),
      batch(2, B('', '', ['6']), E(''), SYNC, B('', '', ['x']), E(''), SYNC),
      batch(1, B('', '', ['7']), D('P', ''), E(''), SYNC),
    ],
  },
  {
    name: 'an unnamed statement is gone after a failed Parse, a simple query, a Close, DISCARD ALL; not after DEALLOCATE ALL alone',
    steps: [
      batch(1, P('', 'SELECT 1'), SYNC),
      batch(1, P('', 'SELEC'), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(1, P('', 'SELECT 2'), SYNC),
      q('SELECT 0'),
      batch(1, B('', ''), E(''), SYNC),
      batch(1, P('', 'SELECT 3'), SYNC),
      batch(1, C('S', ''), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(1, D('S', ''), SYNC),
      batch(1, P('', 'SELECT 4'), SYNC),
      q('DISCARD ALL'),
      batch(1, B('', ''), E(''), SYNC),
      x('DEALLOCATE ALL'),
      batch(1, B('', ''), E(''), SYNC),
    ],
  },
  {
    name: 'a Parse that PostgreSQL skips leaves the unnamed statement that was there before',
    steps: [
      batch(1, P('', "SELECT 'kept'"), SYNC),
      batch(1, P('bad', 'SELEC'), P('', "SELECT 'skipped'"), SYNC),
      batch(1, B('', ''), E(''), SYNC),
      batch(1, P('bad', 'SELEC'), C('S', ''), SYNC),
      batch(1, B('', ''), E(''), SYNC),
    ],
  },
  {
    name: 'statements and portals that do not exist',
    steps: [
      batch(1, B('', 'never'), SYNC),
      batch(1, D('S', 'never'), SYNC),
      batch(1, D('P', 'never'), SYNC),
      batch(1, E('never'), SYNC),
      batch(1, C('S', 'never'), C('P', 'never'), SYNC),
      batch(1, B('', ''), SYNC),
      batch(1, D('P', ''), SYNC),
    ],
  },
  {
    name: 'values that do not fit, too few of them, too many',
    steps: [
      x('SELECT $1::int', ['abc']),
      x('SELECT $1::int', []),
      x('SELECT $1::int', ['1', '2']),
      x('SELECT $1', ['1']),
      x('SELECT $1 + $2', ['1', '2']),
    ],
  },
  {
    name: 'transactions by the extended protocol, with a failure inside',
    steps: [
      x('BEGIN'),
      x('SELECT 1'),
      x('SELECT 1/0'),
      x('SELECT 1'),
      x('ROLLBACK'),
      x('BEGIN'),
      x('COMMIT'),
    ],
  },
  {
    name: 'two portals of two statements run in turns',
    steps: [
      q('BEGIN'),
      batch(
        1,
        P('', 'SELECT g FROM generate_series(1, 4) g'),
        B('a', ''),
        P('', "SELECT 'x' || g FROM generate_series(1, 4) g"),
        B('b', ''),
        E('a', 1),
        E('b', 1),
        E('a', 1),
        E('b', 0),
        E('a', 0),
        SYNC,
      ),
      q('FETCH ALL FROM a'),
      q('COMMIT'),
    ],
  },
  {
    name: 'SQL cursors in a transaction',
    steps: [
      q('BEGIN'),
      q('DECLARE c CURSOR FOR SELECT id FROM items ORDER BY id'),
      q('FETCH 2 FROM c'),
      x('FETCH 2 FROM c'),
      q('COMMIT'),
      q('FETCH 1 FROM c'),
    ],
  },
];

const COPY: Conversation[] = [
  {
    name: 'COPY out, whole and refused',
    steps: [
      q('COPY items TO STDOUT'),
      q('COPY (SELECT 1/0) TO STDOUT'),
      q("COPY (SELECT g, repeat('z', 500) FROM generate_series(1, 500) g) TO STDOUT"),
      x('COPY items TO STDOUT'),
      q('SELECT 1; COPY items TO STDOUT; SELECT 2'),
      q('COPY nowhere TO STDOUT'),
    ],
  },
  {
    name: 'COPY in by the simple protocol: good, failed by the client, failed by a bad row, refused',
    writes: true,
    steps: [
      partly(1, Q('COPY items FROM STDIN')),
      batch(1, d('40\tforty\n'), d('41\tfor'), d('ty one\n'), COPY_DONE),
      partly(1, Q('COPY items FROM STDIN')),
      batch(1, d('42\tx\n'), encodeCopyFail('changed my mind')),
      partly(1, Q('COPY items FROM STDIN')),
      batch(1, d('43\tx\n'), d('not a number\tx\n'), COPY_DONE),
      partly(1, Q('COPY items FROM STDIN')),
      batch(1, d('1\tduplicate\n'), COPY_DONE),
      q('COPY nowhere FROM STDIN'),
      batch(1, d('1\tx\n'), COPY_DONE, Q('SELECT id FROM items ORDER BY id')),
    ],
  },
  {
    name: 'COPY in between other statements of a string, with Flush and Sync among the data',
    writes: true,
    steps: [
      partly(4, Q('SELECT 1; COPY items FROM STDIN; SELECT 2')),
      batch(1, d('50\tx\n'), FLUSH, SYNC, d('51\tx\n'), COPY_DONE),
      partly(1, Q('COPY items FROM STDIN; COPY items FROM STDIN; SELECT 3')),
      partly(2, d('52\tx\n'), COPY_DONE),
      batch(1, d('53\tx\n'), COPY_DONE),
      q('SELECT id FROM items ORDER BY id'),
    ],
  },
  {
    name: 'COPY in by the extended protocol with the double Sync of libpq',
    writes: true,
    steps: [
      partly(3, P('', 'COPY items FROM STDIN'), B('', ''), D('P', ''), E(''), SYNC),
      batch(1, d('60\tx\n'), COPY_DONE, SYNC),
      partly(3, P('', 'COPY items FROM STDIN'), B('', ''), D('P', ''), E(''), SYNC),
      batch(1, d('61\tx\n'), encodeCopyFail('no'), SYNC),
      partly(3, P('', 'COPY items FROM STDIN'), B('', ''), D('P', ''), E(''), SYNC),
      batch(1, d('bad\tx\n'), COPY_DONE, SYNC),
      q('SELECT id FROM items ORDER BY id'),
    ],
  },
  {
    name: 'COPY in by the extended protocol without a Sync in front of the data',
    writes: true,
    steps: [
      partly(4, P('', 'COPY items FROM STDIN'), B('', ''), D('P', ''), E(''), FLUSH),
      batch(1, d('62\tx\n'), COPY_DONE, SYNC),
      partly(4, P('', 'COPY items FROM STDIN'), B('', ''), D('P', ''), E(''), FLUSH),
      batch(1, d('63\tx\n'), encodeCopyFail('no'), SYNC),
      q('SELECT id FROM items ORDER BY id'),
    ],
  },
  {
    name: 'COPY in with everything in one write',
    writes: true,
    steps: [
      batch(1, Q('COPY items FROM STDIN'), d('70\tx\n'), COPY_DONE),
      batch(2, Q('COPY items FROM STDIN'), d('71\tx\n'), COPY_DONE, Q('SELECT count(*) FROM items')),
      batch(2, Q('COPY items FROM STDIN'), d('bad\tx\n'), COPY_DONE, Q('SELECT count(*) FROM items')),
      batch(
        2,
        P('', 'COPY items FROM STDIN'),
        B('', ''),
        E(''),
        d('72\tx\n'),
        COPY_DONE,
        SYNC,
        Q('SELECT 1'),
      ),
      batch(
        2,
        P('', 'COPY items FROM STDIN'),
        B('', ''),
        E(''),
        d('bad\tx\n'),
        COPY_DONE,
        SYNC,
        Q('SELECT 2'),
      ),
      batch(
        2,
        P('', 'COPY items FROM STDIN'),
        B('', ''),
        E(''),
        SYNC,
        d('73\tx\n'),
        COPY_DONE,
        SYNC,
        Q('SELECT 3'),
      ),
      batch(
        2,
        P('', 'COPY items FROM STDIN'),
        B('', ''),
        E(''),
        SYNC,
        d('bad\tx\n'),
        COPY_DONE,
        SYNC,
        Q('SELECT count(*) FROM items'),
      ),
      q('SELECT id FROM items ORDER BY id'),
    ],
  },
  {
    name: 'COPY in inside a transaction that fails and is rolled back',
    writes: true,
    steps: [
      q('BEGIN'),
      partly(1, Q('COPY items FROM STDIN')),
      batch(1, d('80\tx\n'), COPY_DONE),
      partly(1, Q('COPY items FROM STDIN')),
      batch(1, d('80\tx\n'), COPY_DONE),
      q('SELECT 1'),
      q('ROLLBACK'),
      q('SELECT count(*) FROM items'),
    ],
  },
  {
    name: 'a large COPY in, in one message and in many',
    writes: true,
    steps: [
      partly(1, Q('COPY items FROM STDIN')),
      batch(1, d(`90\t${LONG.repeat(10)}\n`), COPY_DONE),
      partly(1, Q('COPY items FROM STDIN')),
      inPieces(
        batch(1, ...Array.from({ length: 50 }, (_, n) => d(`${1000 + n}\t${LONG}\n`)), COPY_DONE),
        60_000,
      ),
      q('SELECT count(*), sum(length(name)) FROM items'),
    ],
  },
];

const OTHER: Conversation[] = [
  {
    name: 'FunctionCall, also one that fails',
    staticOnly: true,
    steps: [
      batch(1, functionCall(177, ['1', '2'])),
      batch(1, functionCall(154, ['1', '0'])),
      batch(1, functionCall(1, [])),
      batch(2, functionCall(177, ['3', '4']), Q('SELECT 1')),
      q('BEGIN'),
      batch(1, functionCall(154, ['1', '0'])),
      q('ROLLBACK'),
    ],
  },
  {
    name: 'VACUUM, CREATE DATABASE and the like are not put into a transaction',
    writes: true,
    steps: [
      q('CREATE TABLE mine (i int)'),
      q('VACUUM mine'),
      x('VACUUM mine'),
      q('CREATE INDEX CONCURRENTLY mine_i ON mine (i)'),
      q('BEGIN; VACUUM mine'),
      q('ROLLBACK'),
      q('DROP TABLE mine'),
    ],
  },
  {
    name: 'transaction modes, read only and deferrable',
    steps: [
      q('BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE'),
      q('SHOW transaction_isolation'),
      q("INSERT INTO items VALUES (100, 'x')"),
      q('ROLLBACK'),
      q('SHOW transaction_isolation'),
      q('START TRANSACTION READ WRITE'),
      q('SET TRANSACTION ISOLATION LEVEL REPEATABLE READ'),
      q('SHOW transaction_isolation'),
      q('COMMIT'),
      q('SHOW transaction_isolation'),
      q('SET TRANSACTION READ ONLY'),
    ],
  },
];

describeConversations([...SIMPLE, ...EXTENDED, ...COPY, ...OTHER]);
