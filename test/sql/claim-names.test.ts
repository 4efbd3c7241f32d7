/** The settings that carry claims: their names, and what a session with a token may not do to them. */
import { beforeAll, describe, expect, test } from 'vitest';
import { ClaimNames } from '../../src/sql/claim-names.ts';
import { StatementAnalyzer } from '../../src/sql/statement.ts';

const names = new ClaimNames(['App.Tenant', 'my$app.sub.id']);
let analyzer: StatementAnalyzer;

beforeAll(async () => {
  analyzer = await StatementAnalyzer.load({ claimNames: names });
});

describe('a name', () => {
  test.each([
    'request.jwt',
    'request.jwt.claims',
    'request.jwt.claim.sub',
    'turnstile.mac',
    'turnstile',
    'app.tenant',
    'my$app.sub.id',
  ])('carries claims: %s', (name) => expect(names.has(name)).toBe(true));
  test.each([
    'request.jwtx',
    'request',
    'turnstiles.mac',
    'app.tenants',
    'app',
    'tenant',
    'myaapp.sub.id',
    'role',
    'search_path',
  ])('does not: %s', (name) => expect(names.has(name)).toBe(false));
});

const REFUSED = [
  "SET app.tenant = 'x'",
  `SET "APP"."Tenant" TO 'x'`,
  "SET LOCAL App.Tenant = 'x'",
  'RESET app.tenant',
  'SET app.tenant TO DEFAULT',
  `SET U&"\\0061pp".tenant = 'x'`,
  "SELECT set_config('app.tenant', 'x', true)",
  "SELECT set_config(new_value => 'x', setting_name => 'APP.TENANT', is_local => false)",
  "SELECT set_config('app.' || 'tenant', 'x', true)",
  "SELECT set_config(E'\\x61pp.tenant', 'x', true)",
  'SELECT set_config($1, $2, $3)',
  "WITH a AS (SELECT set_config('app.tenant', 'x', true)) SELECT 1 FROM a",
  "INSERT INTO t SELECT set_config('my$app.sub.id', 'x', true)",
  "ALTER ROLE CURRENT_USER SET app.tenant = 'x'",
  "ALTER DATABASE d SET app.tenant = 'x'",
  "ALTER SYSTEM SET app.tenant = 'x'",
  "CREATE FUNCTION f() RETURNS int LANGUAGE sql SET app.tenant = 'x' AS 'SELECT 1'",
  "ALTER FUNCTION f() SET app.tenant = 'x'",
  "DO $$ BEGIN SET app.tenant = 'x'; END $$",
  `DO $$ BEGIN SET "app" . "tenant" = 'x'; END $$`,
  "DO $$ BEGIN EXECUTE 'SET my$app.sub.id = 1'; END $$",
  "DO $$ BEGIN PERFORM set_config('app.tenant', 'x', false); END $$",
  "CREATE FUNCTION f() RETURNS text LANGUAGE sql AS $$ SELECT set_config('request.jwt.claims', '', false) $$",
  "SELECT query_to_xml('SELECT set_config(''app.tenant'', ''x'', false)', true, true, '')",
  "PREPARE p AS SELECT set_config('app.tenant', 'x', true)",
  "SELECT 1; SET app.tenant = 'x'",
  "SET app.tenant = 'x' NO SQL",
  'SET standard_conforming_strings = off',
  "SET client_encoding = 'SJIS'",
];

/** What a session with a token may do where its login is the role: the role protects itself. */
const ALLOWED = [
  'SET ROLE bob',
  'RESET ROLE',
  'RESET SESSION AUTHORIZATION',
  "SELECT set_config('role', 'bob', false)",
  'DO $$ BEGIN SET ROLE bob; END $$',
  "ALTER ROLE CURRENT_USER SET search_path = 'x'",
  "SET app.tenants = 'x'",
  "SELECT set_config('app.other', 'x', true)",
  'RESET ALL',
  'DISCARD ALL',
  'SELECT f(x)',
  "DO $$ BEGIN UPDATE t SET tenant = 'app'; END $$",
  'SELECT FROM , WHERE nonsense',
];

describe('a session with a token', () => {
  test.each(REFUSED)('must not run %s', (sql) => {
    const effects = analyzer.analyze(sql);
    expect(effects.claimEscape).not.toBeNull();
    expect(effects.escape?.message).toBe(effects.claimEscape?.message);
  });

  test.each(ALLOWED)('may run %s', (sql) => {
    expect(analyzer.analyze(sql).claimEscape).toBeNull();
  });

  test('is told in the words of PostgreSQL', () => {
    expect(analyzer.analyze("SET APP.tenant = 'x'").claimEscape?.message).toBe(
      'permission denied to set parameter "app.tenant"',
    );
  });

  test('a name that is configured elsewhere is free here', async () => {
    const other = await StatementAnalyzer.load();
    expect(other.analyze("SET app.tenant = 'x'").claimEscape).toBeNull();
    expect(other.analyze("SET request.jwt.claims = 'x'").claimEscape).not.toBeNull();
  });
});

test('patterns answer in time linear to the text', () => {
  const text = `set ${'/**/ '.repeat(20_000)}app ${'"'.repeat(20_000)} ${'set_config( '.repeat(10_000)}`;
  const startedMs = performance.now();
  expect(names.changedIn(text)).toBe(false);
  expect(performance.now() - startedMs).toBeLessThan(1_000);
});
