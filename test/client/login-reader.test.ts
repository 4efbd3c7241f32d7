import { describe, expect, test } from 'vitest';
import { LoginReader } from '../../src/client/login-reader.ts';
import { encodePassword, encodeStartup } from '../../src/protocol/message-writer.ts';
import { frame } from '../support/scripted-client.ts';

function collect(reader: LoginReader, pieces: Buffer[]): Buffer | null {
  for (const piece of pieces) {
    // One buffer for all pieces, overwritten each time: what the reader keeps must be its own.
    const shared = Buffer.from(piece);
    expect(reader.push(shared, 0, shared.length)).toBe(shared.length);
    shared.fill(0xff);
  }
  return reader.tryTake();
}

describe.each<[string, Buffer, (reader: LoginReader) => void]>([
  [
    'a startup packet',
    encodeStartup({ user: 'alice', database: 'app' }),
    (reader) => reader.expectFirstPacket(),
  ],
  ['a password', encodePassword('a'.repeat(600)), (reader) => reader.expectResponse(65_536)],
  ['an empty response', frame('p'), (reader) => reader.expectResponse(4)],
])('%s', (_name, message, expectIt) => {
  test('is the same at every split point', () => {
    for (let at = 0; at <= message.length; at++) {
      const reader = new LoginReader();
      expectIt(reader);
      const collected = collect(reader, [message.subarray(0, at), message.subarray(at)]);
      expect(collected?.equals(message), `split at ${at}`).toBe(true);
      expect(reader.tryTake()).toBeNull();
    }
  });

  test('is not there until its last byte', () => {
    const reader = new LoginReader();
    expectIt(reader);
    expect(collect(reader, [message.subarray(0, -1)])).toBeNull();
    expect(collect(reader, [message.subarray(-1)])).toEqual(message);
  });

  test('leaves what lies behind it', () => {
    const reader = new LoginReader();
    expectIt(reader);
    const bytes = Buffer.concat([Buffer.from('xx'), message, Buffer.from('behind')]);
    expect(reader.push(bytes, 2, bytes.length)).toBe(2 + message.length);
    expect(reader.tryTake()).toEqual(message);
  });
});

test('two messages of different kinds follow each other', () => {
  const reader = new LoginReader();
  const [first, second] = [encodeStartup({ user: 'u' }), encodePassword('p')];
  expect(collect(reader, [first])).toEqual(first);
  reader.expectResponse(100);
  expect(collect(reader, [second])).toEqual(second);
  expect(first).toEqual(encodeStartup({ user: 'u' }));
});

test.each([
  ['the limit itself', 100, 100, true],
  ['one byte past the limit', 101, 100, false],
  ['less than its own length', 3, 100, false],
  ['a negative length', -1, 100, false],
  ['the largest length', 0x7fff_ffff, 65_536, false],
])('a response that declares %s', (_name, declared, bytesMax, accepted) => {
  const reader = new LoginReader();
  reader.expectResponse(bytesMax);
  const header = frame('p', '', declared);
  const push = (): number => reader.push(header, 0, header.length);
  if (accepted) expect(push()).toBe(5);
  else expect(push).toThrow(expect.objectContaining({ code: '08P01', severity: 'FATAL' }));
});

test.each([
  7, 10_001, -1, 0x4745_5420,
])('a first packet that declares %i bytes is refused by its header', (length) => {
  const header = Buffer.alloc(4);
  header.writeInt32BE(length);
  expect(() => new LoginReader().push(header, 0, 4)).toThrow(expect.objectContaining({ code: '08P01' }));
});

test('a message of another type is refused, with the number of its type', () => {
  const reader = new LoginReader();
  reader.expectResponse(100);
  const query = frame('Q', 'SELECT 1\0');
  expect(() => reader.push(query, 0, query.length)).toThrow(
    'expected password response, got message type 81',
  );
});
