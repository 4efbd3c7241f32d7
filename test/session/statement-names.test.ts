import { describe, expect, test } from 'vitest';
import { StatementRegistry } from '../../src/session/prepared-statements.ts';
import { NAMES_MAX, StatementNames } from '../../src/session/statement-names.ts';
import { NO_EFFECTS } from '../../src/sql/statement.ts';

const registry = new StatementRegistry();
const [one, two, three] = ['1', '2', '3'].map((text) =>
  registry.make(null, Buffer.from(text), NO_EFFECTS),
) as [ReturnType<typeof registry.make>, ReturnType<typeof registry.make>, ReturnType<typeof registry.make>];

describe('StatementNames', () => {
  test('keeps the unnamed statement apart: it has no place in the count and outlives clear', () => {
    const names = new StatementNames();
    names.set('', one);
    names.set('a', two);
    expect([names.size, names.has(''), names.find(''), names.find('a')]).toEqual([1, false, one, two]);
    names.clear();
    expect([names.size, names.find(''), names.find('a')]).toEqual([0, one, null]);
    names.delete('');
    expect(names.find('')).toBeNull();
  });

  test('of several changes of a name that are taken back, the first knows what was there', () => {
    const names = new StatementNames();
    names.set('a', one);
    names.delete('a');
    names.set('a', two);
    names.takeBack({ name: 'a', statement: one, restore: one });
    names.takeBack({ name: 'a', statement: two, restore: null });
    expect(names.find('a')).toBe(one);
    names.settle();
    names.takeBack({ name: 'a', statement: one, restore: null });
    expect(names.find('a')).toBeNull();
  });

  test('calls a statement by the name used last, or by any other name of it', () => {
    const names = new StatementNames();
    names.set('a', one);
    names.set('b', one);
    names.set('c', two);
    names.lastName = 'a';
    expect(names.nameOf(one)).toBe('a');
    names.lastName = 'c';
    expect(names.nameOf(one)).toBe('b');
    expect(names.nameOf(three)).toBe('c');
  });

  test('is full at its limit and not one before', () => {
    const names = new StatementNames();
    for (let count = 1; count < NAMES_MAX; count++) names.set(`s${count}`, one);
    expect(names.full).toBe(false);
    names.set('last', one);
    expect(names.full).toBe(true);
  });
});
