/** Decoders of a client's messages: round trips, every truncation, nonsensical bodies, the offsets for splicing. */
import { describe, expect, test } from 'vitest';
import * as decode from '../../src/protocol/frontend-messages.ts';
import * as encode from '../../src/protocol/message-writer.ts';

type Decoder = (buffer: Buffer, start: number, end: number) => unknown;
const VIOLATION = expect.objectContaining({ code: '08P01', severity: 'FATAL' });

function body<T>(decoder: (buffer: Buffer, start: number, end: number) => T, frame: Buffer): T {
  return decoder(Buffer.concat([frame, Buffer.from('zz\0\0')]), 5, frame.length);
}

const raw = (...parts: (string | number[])[]): Buffer =>
  Buffer.concat([Buffer.alloc(5), ...parts.map((part) => Buffer.from(part as string))]);

const CASES: [string, Decoder, Buffer, unknown][] = [
  ['Query', decode.decodeQuery, encode.encodeQuery('SELECT ä'), 'SELECT ä'],
  [
    'Parse',
    decode.decodeParse,
    encode.encodeParse('s1', 'SELECT $1', [25, 4294967295]),
    { name: 's1', sql: 'SELECT $1', parameterTypes: [25, 4294967295], tailStart: 8 },
  ],
  [
    'Bind values',
    decode.decodeBindValues,
    encode.encodeBind('p', 's', ['a', null]),
    [Buffer.from('a'), null],
  ],
  ['Describe', decode.decodeStatementOrPortal, encode.encodeDescribe('S', 's'), { target: 'S', name: 's' }],
  ['Close', decode.decodeStatementOrPortal, encode.encodeClose('P', ''), { target: 'P', name: '' }],
  ['Execute', decode.decodeExecute, encode.encodeExecute('p', 100), { portal: 'p', maxRows: 100 }],
  ['PasswordMessage', decode.decodePassword, encode.encodePassword('geheim'), 'geheim'],
  [
    'SASLInitialResponse',
    decode.decodeSASLInitialResponse,
    encode.encodeSASLInitialResponse('SCRAM-SHA-256', 'n,,n=,r=x'),
    { mechanism: 'SCRAM-SHA-256', data: Buffer.from('n,,n=,r=x') },
  ],
  [
    'SASLInitialResponse without data',
    decode.decodeSASLInitialResponse,
    encode.encodeSASLInitialResponse('X', null),
    { mechanism: 'X', data: null },
  ],
  ['CopyFail', decode.decodeCopyFail, encode.encodeCopyFail('why'), 'why'],
];

test.each(CASES)('%s is read back', (_name, decoder, frame, expected) => {
  expect(body(decoder, frame)).toEqual(expected);
});

test.each(
  CASES,
)('%s cut at any byte, or with a byte too many, is a protocol violation', (_name, decoder, frame) => {
  for (let end = 5; end < frame.length; end++) {
    expect(() => body(decoder, frame.subarray(0, end)), `cut at ${end}`).toThrow(VIOLATION);
  }
  expect(() => body(decoder, Buffer.concat([frame, Buffer.from([0])]))).toThrow(VIOLATION);
});

const NONSENSE: [string, Decoder, Buffer][] = [
  ['a query without a NUL', decode.decodeQuery, raw('SELECT 1')],
  ['a query with two NULs', decode.decodeQuery, raw('SELECT 1\0DROP\0')],
  ['a Describe of neither kind', decode.decodeStatementOrPortal, raw('Xname\0')],
  ['a Parse that claims 65535 types', decode.decodeParse, raw('s\0q\0', [0xff, 0xff, 0, 0])],
  [
    'a Bind value longer than the message',
    decode.decodeBindValues,
    raw('\0\0', [0, 0, 0, 1, 0x7f, 255, 255, 255]),
  ],
  ['a Bind value of length -2', decode.decodeBindValues, raw('\0\0', [0, 0, 0, 1, 255, 255, 255, 254, 0, 0])],
  ['a SASL response of length -2', decode.decodeSASLInitialResponse, raw('M\0', [255, 255, 255, 254])],
  ['an empty password message', decode.decodePassword, raw('')],
];
test.each(NONSENSE)('%s is a protocol violation', (_name, decoder, frame) => {
  expect(() => body(decoder, frame)).toThrow(VIOLATION);
});

describe('Bind names', () => {
  test('the offsets let a name be replaced without touching portal, formats and values', () => {
    const frame = encode.encodeBind('portal', 'old', ['väl', null]);
    const names = decode.decodeBindNames(frame, 5, frame.length);
    expect(names).toMatchObject({ portal: 'portal', statement: 'old' });
    const replaced = Buffer.concat([
      frame.subarray(0, names.statementStart),
      Buffer.from('longer name\0'),
      frame.subarray(names.tailStart),
    ]);
    replaced.writeInt32BE(replaced.length - 1, 1);
    expect(replaced).toEqual(encode.encodeBind('portal', 'longer name', ['väl', null]));
  });

  test('the first part of a Bind is enough when both names are in it, and not when one is cut', () => {
    const frame = encode.encodeBind('p', 'statement', ['x'.repeat(1000)]);
    expect(decode.decodeBindNames(frame, 5, 20)).toMatchObject({ portal: 'p', statement: 'statement' });
    expect(() => decode.decodeBindNames(frame, 5, 16)).toThrow(VIOLATION);
  });
});

test('the tail of a Parse is the SQL with its types, byte for byte, whatever its encoding', () => {
  const frame = Buffer.concat([
    encode.encodeParse('s', '', [23]).subarray(0, 7),
    Buffer.from([0xe9, 0, 0, 0]),
  ]);
  const parsed = decode.decodeParse(frame, 5, frame.length);
  expect(frame.subarray(parsed.tailStart)).toEqual(Buffer.from([0xe9, 0, 0, 0]));
  expect(parsed.sql).toBe('\ufffd');
});
