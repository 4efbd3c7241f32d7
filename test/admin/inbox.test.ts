import { describe, expect, test } from 'vitest';
import { Inbox, MESSAGE_BYTES_MAX } from '../../src/admin/inbox.ts';
import { frame } from '../support/scripted-client.ts';

function take(inbox: Inbox): string | null {
  const next = inbox.next();
  return next === null
    ? null
    : String.fromCharCode(next.type) + next.buffer.toString('latin1', next.start, next.end);
}

describe('messages are cut out of whatever comes', () => {
  const stream = Buffer.concat([frame('Q', 'one'), frame('S'), frame('Q', 'x'.repeat(2_000)), frame('X')]);
  const messages = ['Qone', 'S', `Q${'x'.repeat(2_000)}`, 'X'];

  test.each([1, 2, 3, 5, 7, 600, stream.length])('in pieces of %i bytes', (size) => {
    const inbox = new Inbox();
    const seen: string[] = [];
    for (let at = 0; at < stream.length; at += size) {
      inbox.push(stream, at, Math.min(at + size, stream.length));
      for (let message = take(inbox); message !== null; message = take(inbox)) seen.push(message);
    }
    expect(seen).toEqual(messages);
    expect(inbox.length).toBe(0);
  });

  test('bytes are copied: the buffer they came in is used again', () => {
    const inbox = new Inbox();
    const shared = Buffer.from(frame('Q', 'abc'));
    inbox.push(shared, 0, shared.length);
    shared.fill(0);
    expect(take(inbox)).toBe('Qabc');
  });

  test('what waits moves to the front when the buffer is full, and is still the same', () => {
    const inbox = new Inbox();
    for (let round = 0; round < 100; round++) {
      const bytes = frame('Q', `${round}`.padEnd(300, '.'));
      const half = bytes.length >> 1;
      inbox.push(bytes, 0, half);
      expect(take(inbox)).toBeNull();
      inbox.push(bytes, half, bytes.length);
      expect(take(inbox)).toBe(`Q${round}`.padEnd(301, '.'));
    }
  });
});

describe('lengths', () => {
  const push = (bytes: Buffer): Inbox => {
    const inbox = new Inbox();
    inbox.push(bytes, 0, bytes.length);
    return inbox;
  };

  test('the longest message passes', () => {
    expect(take(push(frame('Q', Buffer.alloc(MESSAGE_BYTES_MAX - 5, 'x'))))).toHaveLength(
      MESSAGE_BYTES_MAX - 4,
    );
  });

  test.each([
    ['one byte more than the longest', MESSAGE_BYTES_MAX],
    ['shorter than itself', 3],
    ['zero', 0],
    ['negative', -1],
    ['the largest number', 0x7fff_ffff],
  ])('%s is refused before its body comes', (_name, length) => {
    expect(() => push(frame('Q', '', length)).next()).toThrow(
      expect.objectContaining({ code: '08P01', severity: 'FATAL' }),
    );
  });
});
