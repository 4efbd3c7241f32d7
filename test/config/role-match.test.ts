/** Expressions by which two claims can never become one role, and lists of names with expressions in them. */
import { describe, expect, test } from 'vitest';
import { compileNames } from '../../src/config/name-pattern.ts';
import { compileRoleMatch } from '../../src/config/role-match.ts';
import { Random, seedOf } from '../support/random.ts';

describe('match of a role rule', () => {
  test.each<[string, Record<string, string | null>]>([
    ['team-([a-z]+)', { 'team-a': 'a', 'team-': null, 'xteam-a': null, 'team-a\n': null, 'TEAM-a': null }],
    ['(.+)@example\\.com', { 'a@example.com': 'a', 'a@exampleXcom': null, 'a@example.com.evil': null }],
    ['([a-z]+)', { abc: 'abc', ABC: null, '': null }],
    ['a\\(([^)]+)\\)b', { 'a(x)b': 'x', 'a(x)': null }],
    ['x((?:a|b)c)', { xac: 'ac', xbc: 'bc', xc: null }],
    ['([()]+)', { '((': '((' }],
    ['(.*)', { 'a\nb': 'a\nb', 'ü😀': 'ü😀' }],
  ])('%s', (source, cases) => {
    const match = compileRoleMatch(source);
    for (const [value, expected] of Object.entries(cases))
      expect([value, match(value)]).toEqual([value, expected]);
  });

  test.each([
    ['', 'has no group'],
    ['team', 'has no group'],
    ['a|(b)', 'must be literal text outside'],
    ['(a)|b', 'must be literal text outside'],
    ['.*(a)', 'must be literal text outside'],
    ['(a).*', 'must be literal text outside'],
    ['\\w(a)', 'must be literal text outside'],
    ['(a)\\d', 'must be literal text outside'],
    ['^(a)$', 'must be literal text outside'],
    ['(a)+', 'must be literal text outside'],
    ['(a)?', 'must be literal text outside'],
    ['(a)(b)', 'must have exactly one group'],
    ['((a)b)', 'must have exactly one group'],
    ['(?<name>a)', 'needs a plain group'],
    ['(?=a)', 'needs a plain group'],
    ['((?=a)b)', 'must have exactly one group'],
    ['(a\\1)', 'must not refer back'],
    ['((?:a+)+b)', 'must not repeat a group'],
    ['((?:a|a)*b)', 'must not repeat a group'],
    ['((?:a){2,}b)', 'must not repeat a group'],
    ['(a', 'not closed'],
    ['a)', 'must be literal text outside'],
    ['([a)', 'not closed'],
    ['(a\\', 'not closed'],
    ['([z-a])', 'is no regular expression'],
    ['(+)', 'is no regular expression'],
  ])('%s is refused: %s', (source, sentence) => {
    expect(() => compileRoleMatch(source)).toThrow(RangeError);
    expect(() => compileRoleMatch(source)).toThrow(sentence);
  });

  test('two values never give one role, whatever the expression is', () => {
    const seed = seedOf('ROLE_MATCH_SEED');
    const random = new Random(seed);
    const pieces = ['a', 'b', '-', '\\.', '(', ')', '[ab]', '.', '+', '|', '(?:', '*', '@', '.+'];
    let compiled = 0;
    for (let round = 0; round < 5000; round++) {
      let source = random.pick(['', 'a', '-', '\\.', 'b@']) + random.pick(['(', '(', '']);
      for (let length = 1 + random.below(5); length > 0; length--) source += random.pick(pieces);
      source += random.pick([')', ')', '']) + random.pick(['', 'a', '-', '\\.', '|']);
      let match: (value: string) => string | null;
      try {
        match = compileRoleMatch(source);
      } catch {
        continue;
      }
      compiled += 1;
      const seen = new Map<string, string>();
      for (let trial = 0; trial < 60; trial++) {
        let value = '';
        for (let length = random.below(6); length > 0; length--) value += random.pick([...'ab-.@']);
        const role = match(value);
        if (role === null) continue;
        expect([seed, source, role, seen.get(role) ?? value]).toEqual([seed, source, role, value]);
        seen.set(role, value);
      }
    }
    expect(compiled).toBeGreaterThan(50);
  });
});

describe('a list of names', () => {
  test('a name is itself, an expression must fit the whole name', () => {
    const fits = compileNames(['alice', '/svc_[a-z]+', '/team/', 'a.c', '/x|y']);
    for (const name of ['alice', 'svc_b', 'team', 'a.c', 'x', 'y'])
      expect([name, fits(name)]).toEqual([name, true]);
    for (const name of ['Alice', 'svc_', 'svc_b1', 'my_svc_b', '/team/', 'abc', 'xx', 'svc_b\n', '']) {
      expect([name, fits(name)]).toEqual([name, false]);
    }
  });

  test('an expression that is none is refused with a sentence, never taken for a name', () => {
    for (const entry of ['/[', '/', '//', '/(']) expect(() => compileNames([entry])).toThrow(RangeError);
  });

  test('an empty list fits nobody', () => {
    expect(compileNames([])('alice')).toBe(false);
  });
});
