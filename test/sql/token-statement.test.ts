/** Which texts bring a new access token, which are refused, and that none of them is kept. */
import { beforeAll, describe, expect, test } from 'vitest';
import { StatementAnalyzer } from '../../src/sql/statement.ts';

let analyzer: StatementAnalyzer;
beforeAll(async () => {
  analyzer = await StatementAnalyzer.load();
});

describe('a token in the text', () => {
  test.each([
    ["SET turnstile.token = 'a.b.c'", 'a.b.c'],
    ["set turnstile.token to 'a.b.c'", 'a.b.c'],
    ["SET SESSION Turnstile.Token='a.b.c';", 'a.b.c'],
    ['SET "turnstile"."token" = \'a.b.c\'', 'a.b.c'],
    ["-- comment\n  /* more */ SET turnstile . token = 'a.b.c' -- end", 'a.b.c'],
    ['SET turnstile.token = $tok$a.b.c$tok$', 'a.b.c'],
    ["SET turnstile.token = E'a.b\\x2ec'", 'a.b.c'],
    ["SET turnstile.token = ''", ''],
  ])('%s', (text, token) => {
    const effects = analyzer.analyze(text);
    expect(effects.token).toEqual({ kind: 'value', token });
    expect(effects).toMatchObject({ plain: false, escape: null, settings: [], resets: [], pins: [] });
  });
});

describe('a token as the one parameter', () => {
  test.each([
    "SELECT set_config('turnstile.token', $1, false)",
    "select pg_catalog.set_config('turnstile.token', $1::text, 'off') AS x",
    "SELECT set_config('TURNSTILE.token', $1, false);",
  ])('%s', (text) => {
    expect(analyzer.analyze(text).token).toEqual({ kind: 'parameter' });
  });

  test.each([
    "SELECT set_config('turnstile.token', $1, true)",
    "SELECT set_config('turnstile.token', $2, false)",
    "SELECT set_config('turnstile.token', $1, false), 1",
    "SELECT set_config('turnstile.token', $1, false) FROM pg_class",
    "SELECT set_config('turnstile.token', $1 || 'x', false)",
    "SELECT x.set_config('turnstile.token', $1, false), set_config('turnstile.token', $1, false)",
    "SELECT set_config('turnstile.token', $1, false) UNION ALL SELECT 'x'",
    "SELECT set_config('turnstile.token', 'a.b.c', false)",
    "SELECT 1 WHERE set_config('turnstile.token', $1, false) = ''",
  ])('not so %s', (text) => {
    expect(analyzer.analyze(text).token).toMatchObject({ kind: 'refused' });
  });
});

describe('refused for everybody', () => {
  test.each([
    ["SET LOCAL turnstile.token = 'a.b.c'", 'permission denied to set parameter "turnstile.token"'],
    ['SET turnstile.token TO DEFAULT', 'permission denied to set parameter "turnstile.token"'],
    ["SET turnstile.token = 'a', 'b'", 'permission denied to set parameter "turnstile.token"'],
    ['RESET turnstile.token', 'permission denied to set parameter "turnstile.token"'],
    ["BEGIN; SET turnstile.token = 'a.b.c'", 'permission denied to set parameter "turnstile.token"'],
    ["SET turnstile.token = 'a.b.c'; SELECT 1", 'permission denied to set parameter "turnstile.token"'],
    // PostgreSQL would log the text of a statement that it cannot read.
    ['SET turnstile.token = eyJh.eyJi.c', 'permission denied to set parameter "turnstile.token"'],
    ["SET turnstile.token = 'a.b.c", 'permission denied to set parameter "turnstile.token"'],
    ["ALTER ROLE me SET turnstile.token = 'a.b.c'", 'permission denied to set parameter "turnstile.token"'],
    ['SHOW turnstile.token', 'permission denied to examine "turnstile.token"'],
    ['SELECT 1; SHOW "turnstile"."token"', 'permission denied to examine "turnstile.token"'],
  ])('%s', (text, message) => {
    expect(analyzer.analyze(text).token).toEqual({ kind: 'refused', message });
  });
});

test.each([
  "INSERT INTO notes VALUES ('SET turnstile.token = ''a''')",
  'CREATE TABLE t (a int) -- turnstile.token',
  "SELECT current_setting('turnstile.token', true)",
  'SET turnstile.tokens = 1',
])('%s has nothing to do with a token', (text) => {
  expect(analyzer.analyze(text).token?.kind ?? null).toBeNull();
});

test('no text with a token is kept', async () => {
  const fresh = await StatementAnalyzer.load();
  for (const text of [
    "SET turnstile.token = 'a.b.c'",
    'SET turnstile.token = a.b.c',
    'SHOW turnstile.token',
  ]) {
    fresh.analyze(text);
  }
  expect(fresh.cachedTexts).toBe(0);
  fresh.analyze("SET work_mem = '1MB'");
  expect(fresh.cachedTexts).toBe(1);
});
