import { expect, test } from 'vitest';
import { PendingAction, PendingKind, PendingResponses } from '../../src/server/pending-responses.ts';
import { Random, seedOf } from '../support/random.ts';

const seed = seedOf('PENDING_SEED');

interface Entry {
  kind: PendingKind;
  action: PendingAction;
  owner: object | null;
  data: object | null;
}

test(`keeps every entry whole and in order while it grows and wraps (seed ${seed})`, () => {
  const random = new Random(seed);
  const queue = new PendingResponses<object, object>();
  const list: Entry[] = [];
  const owners = [{ name: 'a' }, { name: 'b' }, null];
  for (let step = 0; step < 4_000; step++) {
    const entry: Entry = {
      kind: random.pick(Object.values(PendingKind)),
      action: random.pick(Object.values(PendingAction)),
      owner: random.pick(owners),
      data: random.below(2) === 0 ? null : { step },
    };
    // It grows for a while, then shrinks for a while.
    const growing = step % 1_000 < 500;
    if (random.below(3) < (growing ? 2 : 1)) {
      if (random.below(10) === 0) {
        queue.unshift(entry.kind, entry.action, entry.owner, entry.data);
        list.unshift(entry);
      } else {
        queue.push(entry.kind, entry.action, entry.owner, entry.data);
        list.push(entry);
      }
    } else if (list.length > 0) {
      queue.pop();
      list.shift();
    }
    expect(queue.length).toBe(list.length);
    expect([queue.kind, queue.owner, queue.data]).toEqual([
      list[0]?.kind ?? 0,
      list[0]?.owner ?? null,
      list[0]?.data ?? null,
    ]);
    if (list.length === 0) continue;
    expect(queue.action).toBe(list[0]!.action);
    const index = random.below(list.length);
    if (random.below(5) === 0) {
      queue.setKindAt(index, PendingKind.MaybeSync);
      list[index]!.kind = PendingKind.MaybeSync;
    }
    expect([queue.kindAt(index), queue.actionAt(index), queue.ownerAt(index), queue.dataAt(index)]).toEqual([
      list[index]!.kind,
      list[index]!.action,
      list[index]!.owner,
      list[index]!.data,
    ]);
    for (const owner of owners) {
      if (owner !== null) expect(queue.hasOwner(owner)).toBe(list.some((known) => known.owner === owner));
    }
  }
  queue.clear();
  expect([queue.length, queue.kind, queue.owner, queue.data]).toEqual([0, 0, null, null]);
});

test('holds on to no owner and no data of an entry that is gone', () => {
  const queue = new PendingResponses<object, object>();
  const owner = {};
  queue.push(PendingKind.Parse, PendingAction.Forward, owner, {});
  queue.pop();
  expect(queue.hasOwner(owner)).toBe(false);
  expect([queue.owner, queue.data]).toEqual([null, null]);
});
