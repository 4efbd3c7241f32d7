import { scanSync } from 'libpg-query';
import { beforeAll, describe, expect, it } from 'vitest';
import { Lexer, TokenKind } from '../../src/sql/lexer.ts';
import { StatementAnalyzer, type StatementEffects } from '../../src/sql/statement.ts';
import { ESCAPES, HARMLESS, NO_ESCAPES, OPAQUE, PINS, PLAIN, SETTINGS, WRAPPINGS } from './corpus.ts';

const SEED = Number(process.env['TEST_SEED'] ?? Date.now() % 1_000_000_007);
const ALL: readonly string[] = [
  ...PLAIN,
  ...OPAQUE,
  ...HARMLESS,
  ...SETTINGS.map(([sql]) => sql),
  ...PINS.map(([sql]) => sql),
  ...ESCAPES,
  ...WRAPPINGS.flatMap(([, wrap]) => ESCAPES.map(wrap)),
  ...NO_ESCAPES,
];

/** Mulberry32. */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4_294_967_296;
  };
}

let analyzer: StatementAnalyzer;
beforeAll(async () => {
  analyzer = await StatementAnalyzer.load();
});

/** The promise of the scan: where it answers without the parser, the parser finds no more. */
function expectNoMissedEffects(sql: string): void {
  const quick = analyzer.analyze(sql);
  const full = analyzer.analyzeByParser(sql);
  if (full.unparsed || quick === full) return;
  const shown = JSON.stringify({ seed: SEED, sql });
  const seen = (effects: StatementEffects): string =>
    JSON.stringify({ ...effects, plain: null, opaque: null });
  expect(seen(quick), shown).toBe(seen(full));
  expect(quick.opaque || !full.opaque, shown).toBe(true);
}

const WORDS = [
  ...[
    'select',
    'Insert',
    'UPDATE',
    'delete',
    'with',
    'values',
    'from',
    'into',
    'as',
    'set',
    'where',
    'temp',
    'table',
  ],
  ...[
    'role',
    '"role"',
    'pg_temp',
    'pg_catalog',
    '"pg_catalog"',
    'set_config',
    '"set_config"',
    'SET_CONFIG',
    'f',
    'count',
  ],
  ...[
    'U&"\\0073et_config"',
    'pg_advisory_lock',
    'pg_settings',
    't',
    'x',
    'materialized',
    'recursive',
    'on',
    'conflict',
    'do',
  ],
  ...[
    'begin',
    'commit',
    'listen',
    'reset',
    'discard',
    'all',
    'not',
    'and',
    'union',
    'returning',
    'lateral',
    'distinct',
  ],
];
const PIECES = [
  ...[
    '(',
    ')',
    '(',
    ')',
    ',',
    '.',
    ';',
    '=',
    '*',
    '::',
    '+',
    '-',
    '||',
    '/',
    '=>',
    '[',
    ']',
    "'role'",
    "'a''b'",
    "'a\\'",
  ],
  ...[
    "E'a\\''",
    "E'b'",
    "'",
    '"',
    '$$',
    '$a$',
    '$1',
    '1',
    '1e5',
    '$a$ x $a$',
    '$$;$$',
    '/*',
    '*/',
    '--',
    '\n',
    ' ',
    '\t',
  ],
  ...[
    '/* c */',
    '-- c\n',
    "B'1'",
    "U&'\\0061'",
    'e',
    'u&',
    'ß',
    "N'x'",
    "'bob'",
    'false',
    'true',
    'null',
    '\\',
    '?',
    '@',
  ],
];

function randomText(random: () => number): string {
  const parts: string[] = [random() < 0.8 ? 'select ' : ''];
  const length = 1 + Math.floor(random() * 14);
  for (let index = 0; index < length; index++) {
    const source = random() < 0.5 ? WORDS : PIECES;
    parts.push(source[Math.floor(random() * source.length)]!);
    if (random() < 0.7) parts.push(' ');
  }
  return parts.join('');
}

/** One to three small damages to a known statement. */
function mutated(random: () => number): string {
  let sql = ALL[Math.floor(random() * ALL.length)]!;
  for (let times = 1 + Math.floor(random() * 3); times > 0; times--) {
    const at = Math.floor(random() * (sql.length + 1));
    const piece =
      random() < 0.6
        ? PIECES[Math.floor(random() * PIECES.length)]!
        : WORDS[Math.floor(random() * WORDS.length)]!;
    const cut = random() < 0.5 ? 0 : Math.floor(random() * 6);
    sql = sql.slice(0, at) + (random() < 0.7 ? piece : '') + sql.slice(at + cut);
  }
  return sql;
}

/** A grammatical statement with calls at random places. */
function grammatical(random: () => number): string {
  const pick = (...choices: readonly string[]): string => choices[Math.floor(random() * choices.length)]!;
  const gap = (): string => pick(' ', ' ', '/**/', '--x\n', '\n\t', ' /* set role */ ');
  const expression = (depth: number): string => {
    const call = pick(
      'count',
      'f',
      'lower',
      'pg_catalog.lower',
      's.g',
      '"lower"',
      'set_config',
      'Pg_Advisory_Lock',
      'setseed',
      'now',
    );
    if (depth <= 0 || random() < 0.3)
      return pick('1', 'a', "'x'", "'ro''le'", '$1', '$$set role$$', 'b.c', "E'\\''", 'NULL', '"set"');
    if (random() < 0.5) {
      const args =
        call === 'set_config' ? pick("'a.b', '1', false", "'role', 'x', true") : expression(depth - 1);
      return `${call}${pick('', ' ', gap())}(${args})`;
    }
    return pick(
      `(${expression(depth - 1)})`,
      `${expression(depth - 1)} + ${expression(depth - 1)}`,
      `CASE WHEN ${expression(depth - 1)} THEN ${expression(depth - 1)} END`,
      `(SELECT${gap()}${expression(depth - 1)})`,
      `${expression(depth - 1)} IN (${expression(depth - 1)})`,
      `coalesce(${expression(depth - 1)}, ARRAY[${expression(depth - 1)}])`,
      `CAST(${expression(depth - 1)} AS varchar(5))`,
    );
  };
  const e = (): string => expression(3);
  return pick(
    `SELECT${gap()}${e()} FROM t WHERE ${e()} GROUP BY ${e()}`,
    `SELECT ${e()} AS x${gap()}INTO ${pick('TEMP ', '', 'pg_temp.')}y`,
    `INSERT INTO${gap()}t (a) VALUES (${e()}), (${e()}) ON CONFLICT (a) DO UPDATE SET a = ${e()}`,
    `UPDATE ${pick('t', 'pg_settings', 'only t')} SET a = ${e()} WHERE ${e()}`,
    `WITH w AS ${pick('', 'MATERIALIZED ')}(SELECT ${e()}), v(q) AS (DELETE FROM t WHERE ${e()} RETURNING ${e()}) SELECT * FROM w`,
    `SELECT * FROM ${pick('f', 'generate_series', 's.g', 'set_config')}(${e()}) AS r(z) JOIN LATERAL (VALUES (${e()})) AS l(m) ON ${e()}`,
    `SELECT DISTINCT ON (a)${gap()}${e()} FROM t ORDER BY ${e()} LIMIT 1`,
    `${pick('BEGIN', 'SELECT 1', 'SET a.b = 1', 'LISTEN x')};${gap()}SELECT ${e()};${pick('', 'COMMIT', 'VALUES (1)')}`,
    `MERGE INTO t USING s ON ${e()} WHEN NOT MATCHED THEN INSERT (a) VALUES (${e()})`,
    `EXPLAIN SELECT ${e()}`,
  );
}

describe('an answer without the parser', () => {
  it('is never less than the parser finds, for every known statement and every prefix of it', () => {
    for (const sql of ALL) expectNoMissedEffects(sql);
    for (const sql of [...PLAIN, ...OPAQUE, ...PINS.map(([text]) => text)]) {
      for (let end = 0; end < sql.length; end++) expectNoMissedEffects(sql.slice(0, end));
    }
  });

  it.each([
    ['random text', randomText, 15_000],
    ['damaged statements', mutated, 15_000],
    ['generated statements', grammatical, 6_000],
  ] as const)(`is never less than the parser finds in %s (TEST_SEED=${SEED})`, (_, generate, times) => {
    const random = randomFrom(SEED);
    let parsed = 0;
    for (let index = 0; index < times; index++) {
      const sql = generate(random);
      expectNoMissedEffects(sql);
      if (!analyzer.analyzeByParser(sql).unparsed) parsed++;
    }
    expect(parsed).toBeGreaterThan(times / 100);
  });

  it(`is the same for a statement wrapped in comments or put behind another (TEST_SEED=${SEED})`, () => {
    for (const sql of [...PLAIN, ...OPAQUE]) {
      expect(analyzer.analyze(`/* ' */ ${sql}`)).toBe(analyzer.analyze(sql));
      expect(analyzer.analyze(`${sql}\n-- '`)).toBe(analyzer.analyze(sql));
    }
  });
});

/** Words and quoted names as PostgreSQL's own scanner sees them; null when it refuses the text. */
function wordsByPostgres(sql: string): string[] | null {
  try {
    return scanSync(sql)
      .tokens.filter((token) => token.tokenName !== 'SQL_COMMENT' && token.tokenName !== 'C_COMMENT')
      .map((token) => Buffer.from(sql).subarray(token.start, token.end).toString())
      .filter((text) => /^(?:[a-z_\x80-\uffff]|")/i.test(text) && !/^(?:e|b|x|n)'/i.test(text));
  } catch {
    return null;
  }
}

function wordsByLexer(sql: string): string[] | null {
  const lexer = new Lexer();
  const words: string[] = [];
  let numberEnd = -1;
  lexer.reset(sql);
  for (;;) {
    const kind = lexer.next();
    if (kind === TokenKind.End) return words;
    if (kind === TokenKind.Doubtful) return null;
    // The exponent of a number and what follows 0x are words to the lexer.
    if (kind === TokenKind.Word && lexer.start !== numberEnd) words.push(sql.slice(lexer.start, lexer.end));
    if (kind === TokenKind.Number) numberEnd = lexer.end;
    if (kind === TokenKind.QuotedName) words.push(sql.slice(lexer.start - 1, lexer.end + 1));
  }
}

describe('the lexer', () => {
  it(`finds the same words as PostgreSQL's scanner (TEST_SEED=${SEED})`, () => {
    const random = randomFrom(SEED + 1);
    let compared = 0;
    for (let index = 0; index < 15_000; index++) {
      const sql = random() < 0.5 ? mutated(random) : randomText(random);
      const ours = wordsByLexer(sql);
      const theirs = wordsByPostgres(sql);
      if (ours === null || theirs === null) continue;
      compared++;
      // A national literal is a keyword and a literal to PostgreSQL; to the lexer too.
      expect(
        ours.filter((word) => !/^[nbx]$/i.test(word)),
        JSON.stringify({ seed: SEED, sql }),
      ).toEqual(theirs.filter((word) => !/^[nbx]$/i.test(word)));
    }
    expect(compared).toBeGreaterThan(3_000);
  });

  it.each([
    "SELECT 'a",
    'SELECT "a',
    'SELECT $a$ x',
    'SELECT /* x',
    "SELECT E'\\'",
    'SELECT $',
    'SELECT \0',
  ])('does not guess at a broken text: %s', (sql) => {
    expect(wordsByLexer(sql)).toBeNull();
  });

  it.each([
    "SELECT U&'a'",
    'SELECT u&"a"',
    "SELECT E'a'\n'b'",
    "SELECT e'a' -- x\n 'b'",
  ])('leaves what depends on more than the token to the parser: %s', (sql) => {
    expect(wordsByLexer(sql)).toBeNull();
  });
});
