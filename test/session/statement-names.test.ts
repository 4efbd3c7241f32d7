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

  test('a name seen from behind stands for what was noted last, and in the end for what was answered', () => {
    // Close, Parse of two, Parse of three: which of them PostgreSQL did, and what the name then stands for.
    for (const name of ['a', '']) {
      for (let done = 0; done < 8; done++) {
        const names = new StatementNames();
        names.set(name, one);
        const changes = [null, two, three].map((statement) => names.change(name, statement, true));
        expect(names.find(name)).toBe(three);
        let wanted: typeof one | null = one;
        changes.forEach((change, index) => {
          if ((done & (1 << index)) !== 0) {
            names.complete(change);
            wanted = change.statement;
          } else {
            names.reject(change, false);
          }
          if (index < 2) expect(names.find(name)).toBe(three);
        });
        expect([done, names.find(name), names.isOpen(name)]).toEqual([done, wanted, false]);
      }
    }
  });

  test('a Parse of the unnamed statement that fails leaves none, whatever was there', () => {
    const names = new StatementNames();
    names.set('', one);
    const [first, second] = [names.change('', two, false), names.change('', three, false)];
    names.complete(first!);
    names.reject(second!, true);
    expect(names.find('')).toBeNull();
  });

  test('DEALLOCATE and its answer leave what is on its way behind', () => {
    const names = new StatementNames();
    for (const name of ['a', 'b']) names.set(name, one);
    names.delete('a');
    const [a, c] = [names.change('a', two, true), names.change('c', two, true)];
    names.clear();
    expect([names.find('a'), names.find('b'), names.find('c')]).toEqual([two, null, two]);
    names.complete(a);
    names.reject(c, false);
    expect([names.find('a'), names.find('c'), names.size]).toEqual([two, null, 1]);
  });

  test('is in doubt for later requests only: a Close that nothing can skip is sure, a Parse may still be refused', () => {
    const proven = new WeakSet<object>([two]);
    const cases: [typeof one | null, boolean, boolean, boolean][] = [
      [two, true, true, true],
      [two, false, false, true],
      [three, false, true, true],
      [null, true, true, true],
      [null, false, false, false],
    ];
    for (const [statement, skippable, inDoubt, taken] of cases) {
      const names = new StatementNames();
      names.set('a', one);
      const change = names.change('a', statement, skippable);
      expect([names.isInDoubt('a', proven), names.mayBeTaken('a')]).toEqual([false, false]);
      names.request++;
      expect([names.isInDoubt('a', proven), names.mayBeTaken('a')]).toEqual([inDoubt, taken]);
      names.complete(change);
      expect([names.isInDoubt('a', proven), names.mayBeTaken('a')]).toEqual([false, false]);
    }
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
