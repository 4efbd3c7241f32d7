import { describe, expect, test } from 'vitest';
import { Clock } from '../../src/base/clock.ts';
import { Fifo } from '../../src/base/fifo.ts';
import { Lru } from '../../src/base/lru.ts';
import { Random, seedOf } from '../support/random.ts';

const seed = seedOf('COLLECTIONS_SEED');

describe('Fifo', () => {
  test(`does what a list does, around the end of the ring and while it grows (seed ${seed})`, () => {
    const random = new Random(seed);
    const ring = new Fifo<number>(2);
    let list: number[] = [];
    for (let step = 0; step < 4_000; step++) {
      switch (random.below(7)) {
        case 0:
        case 1:
        case 2:
          ring.push(step % 50);
          list.push(step % 50);
          break;
        case 3:
        case 4:
          expect(ring.shift()).toBe(list.shift());
          break;
        case 5: {
          const wanted = random.below(50);
          const at = list.indexOf(wanted);
          expect(ring.remove(wanted)).toBe(at >= 0);
          if (at >= 0) list.splice(at, 1);
          break;
        }
        default:
          if (random.below(200) === 0) {
            ring.clear();
            list = [];
          }
      }
      expect(ring.length).toBe(list.length);
      expect(ring.peek()).toBe(list[0]);
      const index = random.below(list.length + 2);
      expect(ring.at(index)).toBe(list[index]);
    }
  });

  test('holds no item that was taken out', () => {
    const ring = new Fifo<object>(4);
    const items = [{}, {}, {}];
    for (const item of items) ring.push(item);
    ring.remove(items[1]!);
    expect([ring.shift(), ring.shift(), ring.shift()]).toEqual([items[0], items[2], undefined]);
    expect(ring.length).toBe(0);
  });
});

describe('Lru', () => {
  test('forgets what was not used for longest; a peek is no use', () => {
    const lru = new Lru<string, number>(2);
    expect(lru.set('a', 1)).toBeUndefined();
    expect(lru.set('b', 2)).toBeUndefined();
    expect(lru.get('a')).toBe(1);
    expect(lru.peek('b')).toBe(2);
    expect(lru.set('c', 3)).toEqual(['b', 2]);
    expect([...lru.keys()]).toEqual(['a', 'c']);
    expect(lru.set('a', 9)).toBeUndefined();
    expect([...lru.keys()]).toEqual(['c', 'a']);
    expect(lru.delete('c')).toBe(true);
    expect(lru.delete('c')).toBe(false);
  });

  test('never holds more than its maximum, which is at least one', () => {
    for (const max of [-1, 0, 1, 7]) {
      const lru = new Lru<number, number>(max);
      for (let key = 0; key < 100; key++) {
        lru.set(key, key);
        expect(lru.size).toBeLessThanOrEqual(Math.max(1, max));
        expect(lru.peek(key)).toBe(key);
      }
    }
  });
});

test('the clock stands still between two looks at the exact time', () => {
  const clock = new Clock();
  const before = clock.nowMs;
  expect(clock.nowMs).toBe(before);
  expect(clock.precise()).toBeGreaterThanOrEqual(before);
  expect(clock.nowMs).toBeGreaterThanOrEqual(before);
});
