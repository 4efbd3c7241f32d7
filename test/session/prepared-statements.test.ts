import { describe, expect, test } from 'vitest';
import {
  SERVER_NAME_PREFIX,
  ServerStatements,
  StatementRegistry,
} from '../../src/session/prepared-statements.ts';
import { NO_EFFECTS } from '../../src/sql/statement.ts';

const tail = Buffer.from('SELECT 1\0\0\0');

describe('StatementRegistry', () => {
  test('knows a statement by its key, gives every one a name of its own, and copies what it keeps', () => {
    const registry = new StatementRegistry();
    const bytes = Buffer.from(tail);
    const statement = registry.make('key', bytes, NO_EFFECTS);
    bytes.fill(0);
    expect(registry.find('key')).toBe(statement);
    expect(registry.find('other')).toBeUndefined();
    expect(statement.parseTail.equals(tail)).toBe(true);
    expect(statement.serverName.startsWith(SERVER_NAME_PREFIX)).toBe(true);
    expect(statement.serverNameBytes.toString()).toBe(`${statement.serverName}\0`);
    expect(registry.make('other', tail, NO_EFFECTS).serverName).not.toBe(statement.serverName);
  });

  test('does not find a private statement', () => {
    const registry = new StatementRegistry();
    registry.make(null, tail, NO_EFFECTS);
    expect(registry.size).toBe(0);
  });

  test('is bounded by the number of statements', () => {
    const registry = new StatementRegistry(3);
    for (let index = 0; index < 10; index++) registry.make(`k${index}`, tail, NO_EFFECTS);
    expect(registry.size).toBe(3);
    expect(registry.find('k6')).toBeUndefined();
    expect(registry.find('k9')).toBeDefined();
  });

  test('is bounded by the characters of all texts, and a text beyond that is kept by nobody', () => {
    const registry = new StatementRegistry(1_000, 100);
    for (let index = 0; index < 10; index++) registry.make(`${index}`.padEnd(30, 'x'), tail, NO_EFFECTS);
    expect(registry.size).toBe(3);
    expect(registry.find('9'.padEnd(30, 'x'))).toBeDefined();
    registry.make('y'.repeat(101), tail, NO_EFFECTS);
    expect(registry.size).toBe(3);
    registry.make('z'.repeat(100), tail, NO_EFFECTS);
    expect(registry.size).toBe(1);
    // The same key twice counts once.
    for (let index = 0; index < 5; index++) registry.make('z'.repeat(100), tail, NO_EFFECTS);
    expect(registry.size).toBe(1);
  });
});

describe('ServerStatements', () => {
  const make = (count: number): ReturnType<StatementRegistry['make']>[] => {
    const registry = new StatementRegistry();
    return Array.from({ length: count }, (_, index) => registry.make(`${index}`, tail, NO_EFFECTS));
  };

  test('give up the one that was not used for longest, never the one just added', () => {
    const [a, b, c, d] = make(4);
    const held = new ServerStatements(3);
    expect([held.add(a!), held.add(b!), held.add(c!)]).toEqual([null, null, null]);
    expect(held.use(a!)).toBe(true);
    expect(held.add(d!)).toBe(b);
    held.remove(b!);
    expect(held.use(b!)).toBe(false);
    expect(held.size).toBe(3);
  });

  test('hold at least one, whatever the limit', () => {
    const [a, b] = make(2);
    const held = new ServerStatements(0);
    expect(held.add(a!)).toBeNull();
    expect(held.add(b!)).toBe(a);
  });

  test('take one back whose Close was skipped, and shed no more than one at a time', () => {
    const [a, b, c] = make(3);
    const held = new ServerStatements(1);
    held.add(a!);
    held.complete(a!, true);
    expect(held.add(b!)).toBe(a);
    held.remove(a!);
    expect([held.use(a!), held.use(b!)]).toEqual([false, true]);
    held.reject(a!);
    held.reject(b!);
    expect([held.use(a!), held.use(b!), held.size]).toEqual([true, false, 1]);
    expect(held.add(c!)).toBe(a);
    held.settle();
    held.clear();
    expect(held.size).toBe(0);
  });
});
