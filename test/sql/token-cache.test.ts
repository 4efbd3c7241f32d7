/** A token in a statement must not outlive it: no text with one is kept by the analyzer. */
import { beforeAll, describe, expect, test } from 'vitest';
import { StatementAnalyzer } from '../../src/sql/statement.ts';
import { mayHoldToken, showsToken } from '../../src/sql/token-statement.ts';

const T = 'eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln';
const SPACED = `${Buffer.from('{\n "alg":"RS256"}').toString('base64url')}.${Buffer.from('{"sub":"a"}').toString('base64url')}.c2ln`;
let analyzer: StatementAnalyzer;
beforeAll(async () => {
  analyzer = await StatementAnalyzer.load();
});

describe('no text with a token is kept', () => {
  test.each([
    `SET turnstile/**/.token = '${T}'`,
    `SET turnstile. /* */ token = '${T}'`,
    `SET turnstile -- c\n . token = '${SPACED}'`,
    `SET U&"\\0074urnstile".token = '${T}'`,
    `SET U&"\\0074urnstile".token = '${SPACED}'`,
    `SELECT set_config('turnstile'||'.token','${T}',false)`,
    `SELECT set_config($1,'${T}',false)`,
    `EXECUTE p('${T}')`,
    `CALL p('x${T}')`,
    `SET turnstile.toke = '${T}'`,
    `SET search_path = '${T}`,
  ])('%s', (text) => {
    const before = analyzer.cachedTexts;
    analyzer.analyze(text);
    expect(analyzer.cachedTexts).toBe(before);
  });

  test('other texts are', () => {
    const before = analyzer.cachedTexts;
    analyzer.analyze("SET search_path = 'eyes.on.me'");
    expect(analyzer.cachedTexts).toBe(before + 1);
  });

  test('a long text of what begins like one is looked at in no time', () => {
    const text = `SET search_path = '${'ey'.repeat(2_000)}'`;
    const startedAtMs = performance.now();
    for (let index = 0; index < 100; index++) analyzer.analyze(`${text}${' '.repeat(index)}`);
    expect(performance.now() - startedAtMs).toBeLessThan(1_000);
  });
});

test.each([
  ['turnstile/*'],
  ['turnstile--'],
  ['turnstile . '],
  ['.ey'],
])('a megabyte of %s is looked at in linear time', (piece) => {
  const text = `SET ${piece.repeat(100_000)}`;
  const startedAtMs = performance.now();
  mayHoldToken(text);
  showsToken(text);
  expect(performance.now() - startedAtMs).toBeLessThan(500);
});

describe('a text with a token that PostgreSQL cannot read is refused, in words without the token', () => {
  test.each([
    `SET turnstile/**/.token = '${T}`,
    `SET turnstile./* ' */token = ${T}`,
    `SET turnstile.token = '${T}' x`,
  ])('%s', (text) => {
    const { token } = analyzer.analyze(text);
    expect(token?.kind).toBe('refused');
    expect(JSON.stringify(token)).not.toContain('eyJ');
  });

  test('a comment around the dot does not hide a good one', () => {
    expect(analyzer.analyze(`SET turnstile/**/.token = '${T}'`).token).toEqual({ kind: 'value', token: T });
  });
});
