import { describe, expect, test } from 'vitest';
import {
  isSessionSetting,
  ParameterSet,
  ParameterSets,
  parameterDifference,
  textArrayLiteral,
} from '../../src/session/parameters.ts';

const set = (values: Record<string, string>): ParameterSet =>
  new ParameterSet(new Map(Object.entries(values)));

describe('ParameterSets', () => {
  test('give one object for equal values, in whatever order they came', () => {
    const sets = new ParameterSets();
    const one = sets.of(
      new Map([
        ['a', '1'],
        ['b', '2'],
      ]),
    );
    expect(
      sets.of(
        new Map([
          ['b', '2'],
          ['a', '1'],
        ]),
      ),
    ).toBe(one);
    expect(sets.with(sets.with(sets.empty, 'b', '2'), 'a', '1')).toBe(one);
    expect(sets.with(one, 'a', '1')).toBe(one);
    expect(sets.with(sets.with(one, 'a', null), 'b', null)).toBe(sets.empty);
    expect(sets.with(sets.empty, 'absent', null)).toBe(sets.empty);
  });

  test('are not fooled by values that look like separators', () => {
    const sets = new ParameterSets();
    expect(sets.of(new Map([['a', '1,b=2']]))).not.toBe(
      sets.of(
        new Map([
          ['a', '1'],
          ['b', '2'],
        ]),
      ),
    );
    expect(sets.of(new Map([['a', '']]))).not.toBe(sets.empty);
  });
});

test.each<[string, Record<string, string>, Record<string, string>, [string, string | null][] | null]>([
  ['nothing', { a: '1' }, { a: '1' }, null],
  ['a value that is new', {}, { a: '1' }, [['a', '1']]],
  ['a value that differs', { a: '1' }, { a: '2' }, [['a', '2']]],
  ['a value that goes back to its default', { a: '1' }, {}, [['a', null]]],
  [
    'all at once',
    { a: '1', b: '2', c: '3' },
    { a: '1', b: '9', d: '' },
    [
      ['b', '9'],
      ['d', ''],
      ['c', null],
    ],
  ],
])('the difference names %s', (_, from, to, wanted) => {
  const difference = parameterDifference(set(from), set(to));
  expect(difference?.names.map((name, index) => [name, difference.values[index]]) ?? null).toEqual(wanted);
});

test.each<[(string | null)[], string]>([
  [[], '{}'],
  [['a', null, ''], '{"a",NULL,""}'],
  [['NULL', 'a"b', 'c\\d', 'e,f', '{g}'], '{"NULL","a\\"b","c\\\\d","e,f","{g}"}'],
])('text[] %j cannot be left by its content', (values, literal) => {
  expect(textArrayLiteral(values)).toBe(literal);
});

test('settings that cannot change the meaning of a text do not split the prepared statements', () => {
  expect(set({ application_name: 'a' }).parseKey).toBe(set({}).parseKey);
  expect(set({ 'request.jwt.claims': 'a', 'turnstile.x': 'b' }).parseKey).toBe(set({}).parseKey);
  expect(set({ search_path: 'a' }).parseKey).not.toBe(set({}).parseKey);
  expect(set({ search_path: 'a' }).parseKey).not.toBe(set({ search_path: 'b' }).parseKey);
});

test('what PostgreSQL reports about itself is no setting of a session', () => {
  for (const name of ['is_superuser', 'server_version', 'in_hot_standby', 'session_authorization']) {
    expect(isSessionSetting(name)).toBe(false);
  }
  expect(isSessionSetting('TimeZone')).toBe(true);
});
