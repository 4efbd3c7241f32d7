import { beforeAll, describe, expect, it } from 'vitest';
import { NO_EFFECTS, StatementAnalyzer, type StatementEffects } from '../../src/sql/statement.ts';
import { ESCAPES, HARMLESS, NO_ESCAPES, OPAQUE, PINS, PLAIN, SETTINGS, WRAPPINGS } from './corpus.ts';

let analyzer: StatementAnalyzer;
beforeAll(async () => {
  analyzer = await StatementAnalyzer.load();
});

/** `effects` without the fields that are as in a plain statement. */
function notable(effects: StatementEffects): Partial<StatementEffects> {
  const found: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(effects)) {
    if (JSON.stringify(value) !== JSON.stringify(NO_EFFECTS[key as keyof StatementEffects]))
      found[key] = value;
  }
  return found;
}

describe('data statements', () => {
  it.each(PLAIN)('are plain without a parse: %s', (sql) => {
    const effects = analyzer.analyze(sql);
    expect(effects.plain).toBe(true);
    expect(effects).toBe(analyzer.analyze(sql));
    expect(notable(analyzer.analyzeByParser(sql))).toEqual(notable(effects));
  });

  it('share one frozen object when there is one statement', () => {
    expect(analyzer.analyze('SELECT 1')).toBe(NO_EFFECTS);
    expect(analyzer.analyzeByParser('SELECT 1')).toBe(NO_EFFECTS);
    expect(Object.isFrozen(NO_EFFECTS) && Object.isFrozen(NO_EFFECTS.pins)).toBe(true);
  });

  it('never reach the cache, however many literals vary', () => {
    const before = analyzer.cachedTexts;
    for (let id = 0; id < 1000; id++) analyzer.analyze(`UPDATE t SET role = 'r${id}' WHERE id = ${id}`);
    expect(analyzer.cachedTexts).toBe(before);
  });

  it.each(OPAQUE)('that call unknown functions are opaque and nothing else: %s', (sql) => {
    const expected = { plain: false, opaque: true, ...(sql.includes(';') ? { statementCount: 2 } : {}) };
    expect(notable(analyzer.analyze(sql))).toEqual(expected);
    expect(notable(analyzer.analyzeByParser(sql))).toEqual(expected);
  });

  it.each([
    ['', 0],
    ['  -- nothing', 0],
    ['/* a */;;', 0],
    ['SELECT 1; SELECT 2;', 2],
    ["SELECT ';'; VALUES (1);; DELETE FROM t", 3],
    [Array.from({ length: 40 }, () => 'SELECT 1').join(';'), 40],
    ['SET a.b = 1; SELECT 1', 2],
    ['CREATE RULE r AS ON INSERT TO t DO (SELECT 1; SELECT 2)', 1],
  ])('count statements, not semicolons: %s', (sql, count) => {
    expect(analyzer.analyze(sql).statementCount).toBe(count);
    expect(analyzer.analyzeByParser(sql).statementCount).toBe(count);
  });
});

describe('COPY', () => {
  it.each([
    ['COPY t FROM STDIN', true],
    ['COPY t (a) FROM STDIN WITH (FORMAT csv)', true],
    ['SELECT 1; COPY t FROM STDIN', true],
    ['COPY t TO STDOUT', false],
    ["COPY t FROM '/file'", false],
    ["COPY t FROM PROGRAM 'cat'", false],
  ])('tells whether the client will send data: %s', (sql, copiesIn) => {
    expect(analyzer.analyze(sql).copiesIn).toBe(copiesIn);
  });
});

describe('other statements without effect', () => {
  it.each(HARMLESS)('are found harmless by the parser: %s', (sql) => {
    expect(notable(analyzer.analyze(sql))).toEqual({});
  });
});

describe('settings', () => {
  it.each(SETTINGS)('%s', (sql, settings) => {
    const effects = analyzer.analyze(sql);
    expect(effects).toMatchObject({
      plain: false,
      settings,
      touchesLocalSettings: true,
      unknownSettings: false,
      unparsed: false,
    });
    expect(effects.escape).toBeNull();
    expect(analyzer.analyze(sql)).toBe(effects);
  });

  it.each([
    'SET LOCAL search_path = a',
    'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE',
    "SET TRANSACTION SNAPSHOT '1'",
    'SET transaction_read_only = on',
    "SET transaction_isolation = 'serializable'",
    "SELECT set_config('a.b', '1', true)",
    "SELECT set_config('a.b', '1', 't')",
    "SELECT set_config('a.b', '1', 'yes'::boolean)",
    "SELECT set_config('a.b', '1', is_local => true)",
  ])('that end with the transaction are local only: %s', (sql) => {
    expect(notable(analyzer.analyze(sql))).toEqual({ plain: false, touchesLocalSettings: true });
  });

  it.each([
    ["SELECT set_config('a.b', '1', $1)", ['a.b'], true],
    ["SELECT set_config('a.b', '1', x) FROM t", ['a.b'], true],
    ['SELECT set_config($1, $2, $3)', [], true],
    ['SELECT set_config(VARIADIC ARRAY[$1])', [], true],
    ["UPDATE pg_settings SET setting = 'x'", [], true],
    ['SET SEED TO 0.5', [], true],
    ['SELECT setseed(0.5)', [], false],
    ['SELECT PG_CATALOG."setseed"(0.5)', [], false],
  ])('that the text does not tell are unknown: %s', (sql, settings, local) => {
    expect(analyzer.analyze(sql)).toMatchObject({
      settings,
      unknownSettings: true,
      touchesLocalSettings: local,
    });
  });

  it.each([
    'CREATE FUNCTION f() RETURNS int LANGUAGE sql SET search_path = a AS $$select 1$$',
    'ALTER FUNCTION f() SET search_path = a',
    "ALTER ROLE x SET search_path = 'a'",
    "ALTER SYSTEM SET work_mem = '1MB'",
  ])('of functions and roles are not those of the session: %s', (sql) => {
    expect(analyzer.analyze(sql)).toMatchObject({
      settings: [],
      touchesLocalSettings: false,
      unknownSettings: false,
    });
  });

  it.each([
    ['RESET ALL', { resetsAll: true, touchesLocalSettings: true }],
    ['reset/**/all', { resetsAll: true, touchesLocalSettings: true }],
    ['DISCARD ALL', { discardsAll: true }],
    ['discard --\n all', { discardsAll: true }],
    [
      'SELECT 1; RESET ALL; DISCARD ALL',
      { resetsAll: true, discardsAll: true, touchesLocalSettings: true, statementCount: 3 },
    ],
    ['DEALLOCATE p', { deallocates: ['p'] }],
    ['DEALLOCATE PREPARE "P"', { deallocates: ['P'] }],
    ['DEALLOCATE "all"', { deallocates: ['all'] }],
    ['DEALLOCATE ALL', { deallocatesAll: true }],
    ['deallocate prepare all', { deallocatesAll: true }],
    ['DEALLOCATE a; DEALLOCATE b', { deallocates: ['a', 'b'], statementCount: 2 }],
  ])('%s', (sql, expected) => {
    expect(notable(analyzer.analyze(sql))).toEqual({ plain: false, ...expected });
  });
});

describe('state bound to a server connection', () => {
  it.each(PINS)('%s', (sql, pins) => {
    expect(analyzer.analyze(sql).pins).toEqual(pins);
  });
});

describe('transactions', () => {
  it.each([
    ['BEGIN', 'begin'],
    ['begin;', 'begin'],
    [' ; BEGIN ;', 'begin'],
    ['BEGIN READ ONLY', 'begin'],
    ['BEGIN WORK', 'begin'],
    ['START TRANSACTION ISOLATION LEVEL SERIALIZABLE', 'begin'],
    ['COMMIT', 'end'],
    ['End', 'end'],
    ['ROLLBACK', 'end'],
    ['ABORT;', 'end'],
    ['COMMIT AND CHAIN', null],
    ['ROLLBACK AND CHAIN', null],
    ['COMMIT AND NO CHAIN', 'end'],
    ['ROLLBACK WORK', 'end'],
    ["PREPARE TRANSACTION 'x'", 'end'],
    ['SAVEPOINT a', null],
    ['RELEASE a', null],
    ['ROLLBACK TO a', null],
    ["COMMIT PREPARED 'x'", null],
  ] as const)('%s', (sql, transaction) => {
    const expected = {
      plain: false,
      hasTransactionControl: true,
      ...(transaction === null ? {} : { transaction }),
    };
    expect(notable(analyzer.analyze(sql))).toEqual(expected);
    expect(notable(analyzer.analyzeByParser(sql))).toEqual(expected);
  });

  it.each([
    'BEGIN; SELECT 1',
    'SELECT 1; COMMIT',
    'BEGIN; COMMIT',
    'COMMIT; BEGIN',
  ])('in a text of several statements are control, not a state: %s', (sql) => {
    expect(analyzer.analyze(sql)).toMatchObject({
      transaction: null,
      hasTransactionControl: true,
      statementCount: 2,
    });
  });
});

describe('code that the text does not show', () => {
  it.each([
    'DO $$ begin end $$',
    'CALL p(1)',
  ])('is opaque, and no code for a read-only session: %s', (sql) => {
    const message = expect.stringMatching(/^(DO|CALL) cannot be used in a read-only session/);
    expect(notable(analyzer.analyze(sql))).toEqual({ plain: false, opaque: true, widens: { message } });
  });

  it.each([
    'EXECUTE p(1)',
    'EXPLAIN ANALYZE EXECUTE p',
    'CREATE TABLE x AS EXECUTE p',
    'CREATE FUNCTION f() RETURNS int LANGUAGE sql AS $$select 1$$',
    'CREATE PROCEDURE f() LANGUAGE sql AS $$select 1$$',
    'CREATE EXTENSION x',
    'COPY (SELECT f(1)) TO STDOUT',
    'EXPLAIN ANALYZE SELECT f(1)',
    'CREATE TABLE t (a int DEFAULT f())',
  ])('is opaque: %s', (sql) => {
    expect(notable(analyzer.analyze(sql))).toEqual({ plain: false, opaque: true });
  });
});

describe('read-only access', () => {
  it.each([
    'SET default_transaction_read_only = off',
    'set "Default_Transaction_Read_Only" to \'0\'',
    'SET LOCAL transaction_read_only TO no',
    'RESET transaction_read_only',
    'SET TRANSACTION READ WRITE',
    'SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE',
    'BEGIN READ WRITE',
    'begin isolation level serializable, read write, deferrable',
    'START TRANSACTION READ WRITE',
    'SELECT 1; BEGIN /* x */ READ -- y\n WRITE',
    "SELECT set_config('transaction_read_only', 'off', true)",
    "SELECT set_config('transaction_read_only', $1, true)",
    'SELECT set_config($1, $2, false)',
    "SELECT pg_catalog.set_config(setting_name => 'default_transaction_read_only', new_value => 'f', is_local => false)",
    "UPDATE pg_catalog.pg_settings SET setting = 'off'",
    'EXPLAIN ANALYZE SELECT set_config($1, $2, false)',
    'SELECT f(1); COMMIT; INSERT INTO t VALUES (1)',
    'BEGIN; SELECT f(1); COMMIT',
    'BEGIN READ WRITE WITH WORDS OF ANOTHER VERSION',
  ])('would be widened by: %s', (sql) => {
    expect(analyzer.analyze(sql).widens).not.toBeNull();
  });

  it.each([
    'SELECT 1',
    'BEGIN',
    'BEGIN READ ONLY',
    'START TRANSACTION ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE',
    'SET TRANSACTION READ ONLY',
    'SET default_transaction_read_only = on',
    "SET transaction_read_only TO 'true'",
    'RESET default_transaction_read_only',
    'RESET ALL',
    "SELECT set_config('default_transaction_read_only', 'on', false)",
    "SELECT 'READ WRITE'",
    'SELECT f(1); SELECT 2',
    'INSERT INTO t VALUES (1)',
  ])('is not widened by: %s', (sql) => {
    expect(analyzer.analyze(sql).widens).toBeNull();
  });
});

describe('escapes', () => {
  it.each(ESCAPES)('are refused: %s', (sql) => {
    const message = analyzer.analyze(sql).escape?.message;
    expect(message).toMatch(/through this pooler$|^permission denied to set parameter "/);
  });

  it.each(WRAPPINGS)('are refused when wrapped: %s', (_, wrap) => {
    const wrapped = ESCAPES.filter((sql) => wrap(sql) !== sql).map(wrap);
    expect(wrapped.length).toBeGreaterThan(50);
    for (const sql of wrapped) {
      expect(analyzer.analyze(sql).escape?.message, sql).toMatch(
        /through this pooler$|^permission denied to set parameter "/,
      );
    }
  });

  it.each(NO_ESCAPES)('are not seen in: %s', (sql) => {
    expect(analyzer.analyze(sql).escape).toBeNull();
  });

  it.each([
    ['SET ROLE x', 'parameter "role" cannot be changed through this pooler'],
    [
      'RESET SESSION AUTHORIZATION',
      'parameter "session_authorization" cannot be changed through this pooler',
    ],
    ["SET Request.JWT.claims = ''", 'permission denied to set parameter "request.jwt.claims"'],
    ['SET turnstile.x TO 1', 'permission denied to set parameter "turnstile.x"'],
    [
      'SELECT set_config($1, $2, true)',
      'set_config with a name that is not a constant cannot be used through this pooler',
    ],
    ['UPDATE pg_settings SET setting = 1', 'pg_settings cannot be updated through this pooler'],
    ['DO $$set role x$$', 'code that changes the role cannot be run or defined through this pooler'],
    ['EXPLAIN SELECT FROM , WHERE role', 'statement cannot be checked: syntax error at or near ","'],
  ])('say what is refused: %s', (sql, message) => {
    expect(analyzer.analyze(sql).escape?.message).toBe(message);
  });
});

describe('texts that cannot be parsed', () => {
  it('leave an ordinary syntax error to PostgreSQL', () => {
    const effects = analyzer.analyze('EXPLAIN SELEC 1');
    expect(effects).toMatchObject({
      unparsed: true,
      opaque: true,
      escape: null,
      pins: [],
      unknownSettings: false,
    });
  });

  it.each([
    'SET ROLE bob BY NEW SYNTAX',
    'FROBNICATE t; SET ROLE bob',
    "NEWCMD set_config('role', 'x', false)",
    "SELECT 'unterminated set_config",
    'SELECT /* unterminated set_config(',
    'SET U&"\\zzzz" = 1',
    'SELECT 1\0; SET x = 1',
  ])('are refused when they have a word of an escape: %s', (sql) => {
    expect(analyzer.analyze(sql)).toMatchObject({ unparsed: true });
    expect(analyzer.analyze(sql).escape?.message).toMatch(/^statement cannot be checked: /);
  });

  it.each([
    ['CREATE TEMP TABLE x NEW SYNTAX', { pins: ['unparsed statement'] }],
    ['SET x NEW SYNTAX = 1', { unknownSettings: true, touchesLocalSettings: true }],
    ['BEGIN NEW SYNTAX', { hasTransactionControl: true }],
  ])('err on the side of effects: %s', (sql, expected) => {
    expect(analyzer.analyze(sql)).toMatchObject({ unparsed: true, ...expected });
  });

  it('keep the refusal short and whole', () => {
    const sql = `FROB ${'role'.repeat(1000)}; set role x`;
    expect(analyzer.analyze(sql).escape!.message.length).toBeLessThan(300);
  });
});
