/** Decoders of a server's messages: round trips, every truncation, oversized and nonsensical bodies. */
import { randomBytes, randomInt } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import * as decode from '../../src/protocol/backend-messages.ts';
import { TxStatus } from '../../src/protocol/codes.ts';
import * as encode from '../../src/protocol/message-writer.ts';
import { PgError } from '../../src/protocol/pg-error.ts';

type Decoder = (buffer: Buffer, start: number, end: number) => unknown;
const VIOLATION = expect.objectContaining({ code: '08P01', severity: 'FATAL' });

/** Decodes a frame's body in the middle of a larger buffer: reading past `end` would be seen. */
function body<T>(decoder: (buffer: Buffer, start: number, end: number) => T, frame: Buffer): T {
  const padded = Buffer.concat([Buffer.from('zz'), frame, Buffer.from('zz\0\0')]);
  return decoder(padded, 7, 2 + frame.length);
}

const raw = (...parts: (string | number[] | Buffer)[]): Buffer =>
  Buffer.concat([Buffer.alloc(5), ...parts.map((part) => Buffer.from(part as string))]);

const CASES: [string, Decoder, Buffer, unknown][] = [
  [
    'ParameterStatus',
    decode.decodeParameterStatus,
    encode.encodeParameterStatus('TimeZone', 'Europe/Zürich'),
    { name: 'TimeZone', value: 'Europe/Zürich' },
  ],
  [
    'BackendKeyData of 4 bytes',
    decode.decodeBackendKeyData,
    encode.encodeBackendKeyData(-5, Buffer.from('abcd')),
    { processId: -5, secretKey: Buffer.from('abcd') },
  ],
  [
    'BackendKeyData of 256 bytes',
    decode.decodeBackendKeyData,
    encode.encodeBackendKeyData(1, Buffer.alloc(256, 7)),
    { processId: 1, secretKey: Buffer.alloc(256, 7) },
  ],
  ['ReadyForQuery', decode.decodeReadyForQuery, encode.encodeReadyForQuery(TxStatus.Failed), TxStatus.Failed],
  ['AuthenticationOk', decode.decodeAuthentication, encode.encodeAuthenticationOk(), { kind: 'ok' }],
  [
    'Cleartext',
    decode.decodeAuthentication,
    encode.encodeAuthenticationCleartextPassword(),
    { kind: 'cleartext' },
  ],
  [
    'MD5',
    decode.decodeAuthentication,
    encode.encodeAuthenticationMD5Password(Buffer.from('salt')),
    { kind: 'md5', salt: Buffer.from('salt') },
  ],
  [
    'SASL',
    decode.decodeAuthentication,
    encode.encodeAuthenticationSASL(['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256']),
    { kind: 'sasl', mechanisms: ['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256'] },
  ],
  ['CommandComplete', decode.decodeCommandComplete, encode.encodeCommandComplete('SELECT 3'), 'SELECT 3'],
  ['DataRow', decode.decodeDataRow, encode.encodeDataRow(['a', null, '']), ['a', null, '']],
  [
    'RowDescription',
    decode.decodeRowDescription,
    encode.encodeRowDescription([
      { name: 'a', typeOid: 25 },
      { name: 'b', typeOid: 20 },
    ]),
    ['a', 'b'],
  ],
  [
    'ErrorResponse',
    decode.decodeErrorFields,
    encode.encodeErrorResponse({ code: '42501', message: 'm', detail: 'd' }),
    new Map([
      ['S', 'ERROR'],
      ['V', 'ERROR'],
      ['C', '42501'],
      ['M', 'm'],
      ['D', 'd'],
    ]),
  ],
];

describe('decoders', () => {
  test.each(CASES)('%s is read back', (_name, decoder, frame, expected) => {
    expect(body(decoder, frame)).toEqual(expected);
  });

  // A secret has no length of its own: a longer key cut to at least four bytes is a shorter key.
  test.each(
    CASES.filter(([name]) => !name.endsWith('256 bytes')),
  )('%s cut at any byte, or with a byte too many, is a protocol violation', (name, decoder, frame) => {
    for (let end = 5; end < frame.length; end++) {
      expect(() => body(decoder, frame.subarray(0, end)), `cut at ${end}`).toThrow(VIOLATION);
    }
    if (name.startsWith('BackendKeyData')) return;
    expect(() => body(decoder, Buffer.concat([frame, Buffer.from([0])]))).toThrow(VIOLATION);
  });

  const NONSENSE: [string, Decoder, Buffer][] = [
    ['a secret of 3 bytes', decode.decodeBackendKeyData, raw([0, 0, 0, 1], 'abc')],
    ['a secret of 257 bytes', decode.decodeBackendKeyData, raw([0, 0, 0, 1], Buffer.alloc(257))],
    ['an unknown transaction status', decode.decodeReadyForQuery, raw('X')],
    ['an error without its last NUL', decode.decodeErrorFields, raw('SERROR\0Mtext\0')],
    ['an error field without a NUL', decode.decodeErrorFields, raw('Mtext')],
    ['an error of 65 different fields', decode.decodeErrorFields, raw(manyFields(65), [0])],
    ['a row whose count is larger than its values', decode.decodeDataRow, raw([0xff, 0xff])],
    ['a value longer than the row', decode.decodeDataRow, raw([0, 1, 0x7f, 0xff, 0xff, 0xff], 'x')],
    ['a value of length -2', decode.decodeDataRow, raw([0, 1, 0xff, 0xff, 0xff, 0xfe])],
    ['an endless list of mechanisms', decode.decodeAuthentication, raw([0, 0, 0, 10], 'M\0'.repeat(40), [0])],
    ['an MD5 salt of 5 bytes', decode.decodeAuthentication, raw([0, 0, 0, 5], 'salty')],
  ];
  test.each(NONSENSE)('%s is a protocol violation', (_name, decoder, frame) => {
    expect(() => body(decoder, frame)).toThrow(VIOLATION);
  });

  test('a start or an end outside the buffer is a violation, not a RangeError', () => {
    const frame = encode.encodeParameterStatus('a', 'b');
    expect(() => decode.decodeParameterStatus(frame, 5, frame.length + 1)).toThrow(VIOLATION);
    expect(() => decode.decodeParameterStatus(frame, 9, 5)).toThrow(VIOLATION);
  });

  test.each([7, 9, 2, 4, 99, -1])('authentication request %i is named as unsupported', (request) => {
    const code = Buffer.alloc(4);
    code.writeInt32BE(request);
    expect(body(decode.decodeAuthentication, raw(code, 'whatever'))).toEqual({
      kind: 'unsupported',
      request,
    });
  });

  test('a secret key is a copy: the buffer it came in may be used again', () => {
    const frame = encode.encodeBackendKeyData(1, Buffer.from('abcd'));
    const { secretKey } = decode.decodeBackendKeyData(frame, 5, frame.length);
    frame.fill(0);
    expect(secretKey.toString()).toBe('abcd');
  });

  test('random bodies end in a value or in a protocol violation, nothing else', () => {
    const seed = randomInt(2 ** 31);
    let state = seed;
    const next = (): number => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return state >>> 8;
    };
    const decoders = [...new Set(CASES.map(([, decoder]) => decoder))];
    for (let round = 0; round < 3_000; round++) {
      const frame = Buffer.alloc(5 + (next() % 40));
      for (let at = 5; at < frame.length; at++) frame[at] = next() % 4 === 0 ? next() & 0xff : next() % 12;
      for (const decoder of decoders) {
        try {
          body(decoder, frame);
        } catch (error) {
          if (error instanceof PgError && error.code === '08P01') continue;
          throw new Error(`seed ${seed}, ${decoder.name}, body ${frame.toString('hex', 5)}`, {
            cause: error,
          });
        }
      }
    }
  });
});

function manyFields(count: number): Buffer {
  return Buffer.concat(Array.from({ length: count }, (_, index) => Buffer.from([65 + index, 0x78, 0])));
}

describe('pgErrorFromFields', () => {
  test('the text, the code, the detail and the hint are the server’s', () => {
    const fields = new Map([
      ['S', 'FEHLER'],
      ['V', 'FATAL'],
      ['C', '3D000'],
      ['M', 'database "x" does not exist'],
      ['D', 'd'],
      ['H', 'h'],
    ]);
    const error = decode.pgErrorFromFields(fields);
    expect(error).toMatchObject({ code: '3D000', severity: 'FATAL', detail: 'd', hint: 'h' });
    expect(error.message).toBe('database "x" does not exist');
  });

  test('a missing or impossible code becomes XX000, a missing text gets words', () => {
    expect(decode.pgErrorFromFields(new Map())).toMatchObject({
      code: 'XX000',
      severity: 'ERROR',
      message: 'unknown error',
    });
    expect(decode.pgErrorFromFields(new Map([['C', 'toolong']])).code).toBe('XX000');
  });
});

test('of a field that comes twice the first counts', () => {
  const frame = raw('Mfirst\0Msecond\0', [0]);
  expect(body(decode.decodeErrorFields, frame).get('M')).toBe('first');
});

test('a long error text is read whole', () => {
  const text = randomBytes(20_000).toString('hex');
  const frame = encode.encodeErrorResponse({ code: '42000', message: text });
  expect(body(decode.decodeErrorFields, frame).get('M')).toBe(text);
});
