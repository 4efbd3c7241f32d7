import { expect, test } from 'vitest';
import { HeldBytes } from '../../src/client/held-bytes.ts';
import { Random, seedOf } from '../support/random.ts';

const seed = seedOf('HELD_BYTES_SEED');

function contents(held: HeldBytes): string {
  const { length } = held;
  const bytes = held.take();
  if (bytes === null) return '';
  held.putBack(bytes, 0, length);
  return bytes.toString('latin1', 0, length);
}

test(`whatever is added, taken and put back, the rest is there in order (HELD_BYTES_SEED=${seed})`, () => {
  const random = new Random(seed);
  const held = new HeldBytes();
  let expected = '';
  for (let step = 0; step < 500; step++) {
    const piece = Buffer.from(
      String.fromCharCode(97 + (step % 26)).repeat(random.below(step === 250 ? 70_000 : 400)),
    );
    if (piece.length > 0) held.add(piece, 0, piece.length);
    expected += piece.toString('latin1');
    if (random.below(3) === 0 && expected.length > 0) {
      const bytes = held.take() as Buffer;
      const used = random.below(expected.length);
      // Between the two somebody may hold bytes of his own only where the rest is gone.
      expect(held.length).toBe(0);
      held.putBack(bytes, used, expected.length);
      expected = expected.slice(used);
    }
    expect(held.length).toBe(expected.length);
    expect(contents(held)).toBe(expected);
  }
});

test('nothing is taken twice', () => {
  const held = new HeldBytes();
  expect(held.take()).toBeNull();
  held.add(Buffer.from('abc'), 1, 3);
  expect(held.take()?.toString('latin1', 0, 2)).toBe('bc');
  expect([held.take(), held.length]).toEqual([null, 0]);
});
