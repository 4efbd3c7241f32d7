import { expect, test } from 'vitest';
import { RequestRecord } from '../../src/client/request-record.ts';
import { frame } from '../support/scripted-client.ts';

const BIND = frame('B', Buffer.alloc(300, 1));
const EXECUTE = frame('E', Buffer.alloc(5));
const SYNC = frame('S', Buffer.alloc(0));

function record(...messages: Buffer[]): RequestRecord {
  const made = new RequestRecord();
  for (const [index, message] of messages.entries()) {
    made.add(index === 0, message[0] as number, message, 0, message.length);
  }
  return made;
}

test('a request of one Sync is kept whole, and the next one takes its place', () => {
  const made = record(BIND, EXECUTE, SYNC);
  expect(made.whole).toBe(true);
  expect(made.bytes.subarray(0, made.length).equals(Buffer.concat([BIND, EXECUTE, SYNC]))).toBe(true);
  made.add(true, SYNC[0] as number, SYNC, 0, SYNC.length);
  expect([made.whole, made.length]).toEqual([true, SYNC.length]);
});

test.each([
  ['without its Sync', [BIND, EXECUTE]],
  ['with a second one behind it', [BIND, SYNC, BIND]],
  ['with a Close', [BIND, frame('C', Buffer.from('Sa\0')), SYNC]],
  ['with a Query', [frame('Q', Buffer.from('SELECT 1\0')), SYNC]],
  ['longer than anybody repeats', [frame('B', Buffer.alloc(16 * 1024)), SYNC]],
])('a request %s cannot be repeated', (_case, messages) => {
  expect(record(...messages).whole).toBe(false);
});

test('a message of which only the beginning is there cannot be repeated', () => {
  const made = new RequestRecord();
  made.add(true, BIND[0] as number, BIND, 0, -1);
  made.add(false, SYNC[0] as number, SYNC, 0, SYNC.length);
  expect(made.whole).toBe(false);
});

test('what was dropped stays dropped until the next request', () => {
  const made = record(BIND, SYNC);
  made.drop();
  expect(made.whole).toBe(false);
  made.add(false, SYNC[0] as number, SYNC, 0, SYNC.length);
  expect(made.whole).toBe(false);
});
