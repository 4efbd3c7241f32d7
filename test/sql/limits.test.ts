import { describe, expect, it, vi } from 'vitest';
import { PARSE_DEPTH_MAX, PARSE_TOKENS_MAX, tooCostly } from '../../src/sql/cost.ts';
import { Parser } from '../../src/sql/parser.ts';
import { NO_EFFECTS, StatementAnalyzer } from '../../src/sql/statement.ts';
import { TextCache } from '../../src/sql/text-cache.ts';

const TOO_LARGE = 'statement is too large to be checked';
const TOO_COMPLEX = 'statement is too complex to be checked';

describe('large texts', () => {
  it('of data are plain at any length', async () => {
    const analyzer = await StatementAnalyzer.load();
    const rows = Array.from({ length: 100_000 }, (_, id) => `(${id}, 'set role ${id}')`).join(',');
    expect(analyzer.analyze(`INSERT INTO t (a, b) VALUES ${rows}`)).toBe(NO_EFFECTS);
  });

  it('are parsed at the limit and not one character past it', async () => {
    const analyzer = await StatementAnalyzer.load({ parsedTextLengthMax: 100 });
    const at = `SET a.b = '${'x'.repeat(88)}'`;
    expect(at.length).toBe(100);
    expect(analyzer.analyze(at)).toMatchObject({ settings: ['a.b'], unparsed: false });
    expect(analyzer.analyze(`${at} `)).toMatchObject({ unparsed: true, unknownSettings: true, escape: null });
  });

  it('with a word of an escape are refused, others are only unparsed', async () => {
    const analyzer = await StatementAnalyzer.load();
    const filler = `-- ${'x'.repeat(300_000)}\n`;
    expect(analyzer.analyze(`${filler}SET ROLE bob`).escape?.message).toBe(TOO_LARGE);
    expect(analyzer.analyze(`${filler}SET U&"x" = 1`).escape?.message).toBe(TOO_LARGE);
    expect(analyzer.analyze(`${filler}CREATE TABLE t (a int)`)).toMatchObject({
      unparsed: true,
      escape: null,
      pins: [],
    });
    expect(analyzer.analyze(`${filler}CREATE TEMP TABLE t (a int)`).pins).toEqual(['unparsed statement']);
  });

  it('are not cached, short ones are', async () => {
    const analyzer = await StatementAnalyzer.load({ cachedTextLengthMax: 20 });
    analyzer.analyze('SET a.b = 1234567890');
    expect(analyzer.cachedTexts).toBe(1);
    analyzer.analyze('SET a.b = 12345678901');
    expect(analyzer.cachedTexts).toBe(1);
  });
});

const DEEP: readonly (readonly [string, (n: number) => string])[] = [
  ['subqueries', (n) => `${'(select '.repeat(n)}1${')'.repeat(n)}`],
  ['parentheses', (n) => `${'('.repeat(n)}1${')'.repeat(n)}`],
  ['calls', (n) => `${'abs('.repeat(n)}1${')'.repeat(n)}`],
  ['sums', (n) => `1${'+1'.repeat(n)}`],
  ['negations', (n) => `${'not '.repeat(n)}true`],
  ['minus signs', (n) => `${'- '.repeat(n)}1`],
  ['casts', (n) => `1${'::int'.repeat(n)}`],
  ['collations', (n) => `a${' collate c'.repeat(n)}`],
  ['time zones', (n) => `a${' at local'.repeat(n)}`],
  ['unions', (n) => `1${' union select 1,1'.repeat(n)}`],
  ['joins', (n) => `1 from a${' join a using(x,y)'.repeat(n)}`],
  ['arrays', (n) => `${'array['.repeat(n)}1${']'.repeat(n)}`],
  ['cases', (n) => `${'case when a then 1 else '.repeat(n)}1${' end'.repeat(n)}`],
  ['exists', (n) => `${'exists(select '.repeat(n)}1${')'.repeat(n)}`],
  ['quoted subqueries', (n) => `U&"a", ${'(select '.repeat(n)}1${')'.repeat(n)}`],
];

describe('deep texts', () => {
  it.each(DEEP)('never overflow the parser: %s', async (_, make) => {
    const parser = await Parser.load(1 << 20);
    for (const n of [50, 200, 450, 900, 1_000, 1_900, 2_100, 4_000, 9_000, 20_000]) {
      const before = tooCostly(`select ${make(n)}`);
      const outcome = parser.parse(`select ${make(n)}`);
      // A parse that began and did not end in a tree or an SQL error would have replaced the module.
      if (before === null) expect(['tree', 'syntax']).toContain(outcome.kind);
      else expect(outcome.kind).toBe(before);
      if (n >= 20_000) expect(before).not.toBeNull();
      expect(parser.parse('select 1').kind).toBe('tree');
    }
  });

  it('are let through at the limit of depth and refused past it', () => {
    expect(tooCostly(`select 1${'+1'.repeat(PARSE_DEPTH_MAX / 2 - 1)}`)).toBeNull();
    expect(tooCostly(`select 1${'+1'.repeat(PARSE_DEPTH_MAX / 2)}`)).toBe('complex');
  });

  it('are not confused with long lists', () => {
    expect(tooCostly(`select 1${',1'.repeat(PARSE_TOKENS_MAX / 2 - 1)}`)).toBeNull();
    expect(tooCostly(`select 1${',1'.repeat(PARSE_TOKENS_MAX / 2)}`)).toBe('large');
    expect(tooCostly('select a from t where b = 1;'.repeat(1000))).toBeNull();
  });

  it('are refused in set_role mode when they have a word of an escape', async () => {
    const analyzer = await StatementAnalyzer.load();
    const deep = `${'('.repeat(5_000)}set_config('role', 'bob', false)${')'.repeat(5_000)}`;
    expect(analyzer.analyze(`SELECT ${deep}`)).toMatchObject({
      unparsed: true,
      escape: { message: TOO_COMPLEX },
    });
  });
});

describe('a parser whose stack ran out after all', () => {
  it('answers that it cannot, never hangs, and is whole again with a new module', async () => {
    const parser = await Parser.load(1 << 20);
    const text = `select ${'(select '.repeat(600)}1${')'.repeat(600)}`;
    const dive = (frames: number): string =>
      frames === 0 ? parser.parse(text).kind : String(dive(frames - 1));
    expect(dive(0)).toBe('tree');
    const kinds = new Set<string>();
    for (let frames = 100; frames < 100_000 && !kinds.has('complex'); frames += 100) {
      try {
        kinds.add(dive(frames));
      } catch {
        break;
      }
    }
    expect(kinds).toContain('complex');
    expect(parser.parse('select 1').kind).toBe('unavailable');
    await vi.waitFor(() => expect(parser.parse('select 1').kind).toBe('tree'));
    expect(parser.parse(text).kind).toBe('tree');
  });
});

describe('hostile runs of operator characters', () => {
  it.each([
    ['nested comments', `${'/*'.repeat(60_000)}${'*/'.repeat(60_000)}`],
    ['signs', `select ${'+-'.repeat(60_000)}`],
    ['comment openers among signs', `${'/*+'.repeat(40_000)}${'*/'.repeat(40_000)}`],
  ])('do not hold the parser: %s', async (_, text) => {
    const analyzer = await StatementAnalyzer.load();
    const started = performance.now();
    const effects = analyzer.analyze(`SET ROLE bob; ${text}`);
    expect(effects).toMatchObject({ unparsed: true, escape: { message: TOO_COMPLEX } });
    expect(performance.now() - started).toBeLessThan(2_000);
  });

  it('do not catch rulers and banners in comments', () => {
    expect(
      tooCostly(`${'-'.repeat(3_000)}\nSET x = 1; /*${'*'.repeat(3_000)}*/ select '${'/'.repeat(9_000)}'`),
    ).not.toBe('large');
    expect(tooCostly(`--${'='.repeat(3_000)}\n/*${'*'.repeat(3_000)}*/ SET x = 1`)).toBeNull();
  });
});

describe('the cache of texts', () => {
  it('keeps what is used and never more than its bounds', () => {
    const cache = new TextCache<number>(10, 1_000);
    for (let index = 0; index < 100; index++) {
      cache.set(`text ${index}`, index);
      expect(cache.get('text 0')).toBe(0);
      expect(cache.size).toBeLessThanOrEqual(11);
    }
    expect(cache.get('text 1')).toBeUndefined();
    expect(cache.get('text 99')).toBe(99);
  });

  it('is bounded by characters as well', () => {
    const cache = new TextCache<number>(1_000, 100);
    for (let index = 0; index < 50; index++) cache.set(`${index}`.padEnd(20), index);
    expect(cache.size).toBeLessThanOrEqual(5);
  });
});
