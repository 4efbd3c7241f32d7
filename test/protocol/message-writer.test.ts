/** Bytes of every encoder, against hand-written frames and against the decoders of the other side. */
import { PassThrough } from 'node:stream';
import { parse } from 'pg-protocol';
import { describe, expect, test } from 'vitest';
import { AssertionError } from '../../src/base/assert.ts';
import * as codes from '../../src/protocol/codes.ts';
import * as writer from '../../src/protocol/message-writer.ts';
import { PgError } from '../../src/protocol/pg-error.ts';

const hex = (text: string): string => text.replaceAll(' ', '');
const ascii = (text: string): string => Buffer.from(text).toString('hex');

describe('MessageWriter', () => {
  test('the length counts itself and the body, not the type', () => {
    const bytes = new writer.MessageWriter().begin(0x51).cstring('ab').end().take();
    expect(bytes.toString('hex')).toBe(hex('51 00000007 616200'));
  });

  test('take copies: what is written later does not change it', () => {
    const encoder = new writer.MessageWriter();
    const first = encoder.begin(0x51).cstring('first').end().take();
    encoder.begin(0x51).cstring('other').end();
    expect(first.subarray(5, 10).toString()).toBe('first');
    expect(encoder.length).toBe(11);
  });

  test('several messages lie behind one another, and one larger than any capacity fits', () => {
    const long = 'é'.repeat(100_000);
    const encoder = new writer.MessageWriter(16);
    const bytes = encoder.begin(0x51).cstring(long).end().begin(0x53).end().take();
    expect(bytes.readInt32BE(1)).toBe(4 + 200_000 + 1);
    expect(bytes.subarray(-5).toString('hex')).toBe(hex('53 00000004'));
    expect(encoder.length).toBe(0);
  });

  test('numbers at their limits, signed and unsigned', () => {
    const bytes = new writer.MessageWriter()
      .begin(null)
      .int8(255)
      .int16(-1)
      .int16(65535)
      .int32(-1)
      .int32(4294967295)
      .end()
      .take();
    expect(bytes.toString('hex')).toBe(hex('00000011 ff ffff ffff ffffffff ffffffff'));
    expect(() => new writer.MessageWriter().begin(1).int16(65536)).toThrow(AssertionError);
  });

  test('a NUL inside a string is refused instead of cutting it short', () => {
    const encoder = new writer.MessageWriter().begin(0x51);
    expect(() => encoder.cstring('a\0b')).toThrow(expect.objectContaining({ code: '22023' }));
  });

  test('misuse is an assertion: nested messages, an end without a begin, taking an open one', () => {
    expect(() => new writer.MessageWriter().begin(1).begin(2)).toThrow(AssertionError);
    expect(() => new writer.MessageWriter().end()).toThrow(AssertionError);
    expect(() => new writer.MessageWriter().begin(1).take()).toThrow(AssertionError);
  });

  test('reset drops an open message and everything before it', () => {
    const encoder = new writer.MessageWriter();
    encoder.begin(0x51).cstring('x').end().begin(0x51).reset();
    expect(encoder.begin(0x53).end().take().toString('hex')).toBe(hex('53 00000004'));
  });
});

/** name, frame, expected bytes in hex. */
const FRAMES: [string, Buffer, string][] = [
  ['ParameterStatus', writer.encodeParameterStatus('a', 'b'), '53 00000008 6100 6200'],
  [
    'BackendKeyData',
    writer.encodeBackendKeyData(258, Buffer.from('01020304', 'hex')),
    '4b 0000000c 00000102 01020304',
  ],
  ['ReadyForQuery', writer.encodeReadyForQuery(codes.TxStatus.Failed), '5a 00000005 45'],
  ['AuthenticationOk', writer.encodeAuthenticationOk(), '52 00000008 00000000'],
  ['CleartextPassword', writer.encodeAuthenticationCleartextPassword(), '52 00000008 00000003'],
  [
    'MD5Password',
    writer.encodeAuthenticationMD5Password(Buffer.from('a1b2c3d4', 'hex')),
    '52 0000000c 00000005 a1b2c3d4',
  ],
  ['SASL', writer.encodeAuthenticationSASL(['X', 'Y']), '52 0000000d 0000000a 5800 5900 00'],
  ['SASLContinue', writer.encodeAuthenticationSASLContinue('r=1'), '52 0000000b 0000000b 723d31'],
  ['SASLFinal', writer.encodeAuthenticationSASLFinal(Buffer.from('v=1')), '52 0000000b 0000000c 763d31'],
  [
    'RowDescription',
    writer.encodeRowDescription([{ name: 'a', typeOid: 25 }]),
    '54 0000001a 0001 6100 00000000 0000 00000019 ffff ffffffff 0000',
  ],
  [
    'DataRow with NULL and an empty string',
    writer.encodeDataRow([null, '', 'é', Buffer.from([1])]),
    '44 00000019 0004 ffffffff 00000000 00000002 c3a9 00000001 01',
  ],
  ['CommandComplete', writer.encodeCommandComplete('BEGIN'), `43 0000000a ${ascii('BEGIN')}00`],
  [
    'NegotiateProtocolVersion',
    writer.encodeNegotiateProtocolVersion(codes.ProtocolVersion.V3_2, ['_pq_.x']),
    `76 00000013 00030002 00000001 ${ascii('_pq_.x')}00`,
  ],
  ['ParseComplete', writer.PARSE_COMPLETE, '31 00000004'],
  ['BindComplete', writer.BIND_COMPLETE, '32 00000004'],
  ['CloseComplete', writer.CLOSE_COMPLETE, '33 00000004'],
  ['NoData', writer.NO_DATA, '6e 00000004'],
  ['EmptyQueryResponse', writer.EMPTY_QUERY_RESPONSE, '49 00000004'],
  [
    'startup packet',
    writer.encodeStartup({ user: 'u', database: 'd' }),
    `0000001b 00030000 ${ascii('user')}00 7500 ${ascii('database')}00 6400 00`,
  ],
  ['Query', writer.encodeQuery('x'), '51 00000006 7800'],
  ['Parse', writer.encodeParse('s', 'x', [25, 4294967295]), '50 00000012 7300 7800 0002 00000019 ffffffff'],
  [
    'Bind',
    writer.encodeBind('p', 's', [null, 'é']),
    '42 0000001e 7000 7300 0002 0000 0000 0002 ffffffff 00000002 c3a9 0001 0000',
  ],
  ['Describe', writer.encodeDescribe('P', ''), '44 00000006 50 00'],
  ['Execute', writer.encodeExecute('p', 7), '45 0000000a 7000 00000007'],
  ['Close', writer.encodeClose('S', 's'), '43 00000007 53 7300'],
  ['PasswordMessage', writer.encodePassword('pw'), '70 00000007 707700'],
  ['SASLInitialResponse', writer.encodeSASLInitialResponse('M', 'n,,'), '70 0000000d 4d00 00000003 6e2c2c'],
  [
    'SASLInitialResponse without data, which is not an empty one',
    writer.encodeSASLInitialResponse('M', null),
    '70 0000000a 4d00 ffffffff',
  ],
  ['SASLResponse', writer.encodeSASLResponse('c=x'), '70 00000007 633d78'],
  ['CopyFail', writer.encodeCopyFail('no'), '66 00000007 6e6f00'],
  [
    'CancelRequest',
    writer.encodeCancelRequest(-2, Buffer.from('0102030405', 'hex')),
    '00000011 04d2162e fffffffe 0102030405',
  ],
  ['SSLRequest', writer.SSL_REQUEST, '00000008 04d2162f'],
  ['Sync', writer.SYNC, '53 00000004'],
  ['Flush', writer.FLUSH, '48 00000004'],
  ['Terminate', writer.TERMINATE, '58 00000004'],
  ['CopyDone', writer.COPY_DONE, '63 00000004'],
];

describe('encoders', () => {
  test.each(FRAMES)('%s has the bytes of the manual', (_name, frame, expected) => {
    expect(frame.toString('hex')).toBe(hex(expected));
  });

  test('ErrorResponse carries S, V, C, M, and D and H only when given', () => {
    const short = writer.encodeErrorResponse(new PgError({ code: '42501', message: 'no' }));
    expect(short.toString('latin1', 5)).toBe('SERROR\0VERROR\0C42501\0Mno\0\0');
    const long = new PgError({ code: '28000', message: 'no', detail: 'd', hint: 'h', severity: 'FATAL' });
    expect(writer.encodeErrorResponse(long).toString('latin1', 5)).toBe(
      'SFATAL\0VFATAL\0C28000\0Mno\0Dd\0Hh\0\0',
    );
    expect(writer.encodeErrorResponse(long, { severity: 'PANIC' }).toString('latin1', 5, 12)).toBe(
      'SPANIC\0',
    );
  });

  test('a NUL in an error text neither throws nor forges a field', () => {
    const frame = writer.encodeErrorResponse({ code: '22023', message: 'a\0C00000' });
    expect(frame.toString('utf8', 5)).toBe('SERROR\0VERROR\0C22023\0Ma\ufffdC00000\0\0');
  });

  test('another implementation reads what we write', async () => {
    const stream = new PassThrough();
    const seen: unknown[] = [];
    const parsed = parse(stream, (message) => seen.push(message));
    stream.end(
      Buffer.concat([
        writer.encodeErrorResponse({ code: '0A000', message: 'm', detail: 'd', hint: 'h' }),
        writer.encodeNotice({ code: '01000', message: 'n', severity: 'WARNING' }),
        writer.encodeRowDescription([{ name: 'c', typeOid: 16, typeSize: 1, format: 1 }]),
        writer.encodeDataRow(['t', null]),
      ]),
    );
    await parsed;
    expect(seen).toMatchObject([
      { name: 'error', code: '0A000', detail: 'd', hint: 'h', severity: 'ERROR' },
      { name: 'notice', code: '01000', message: 'n', severity: 'WARNING' },
      { name: 'rowDescription', fields: [{ name: 'c', dataTypeID: 16, dataTypeSize: 1, format: 'binary' }] },
      { name: 'dataRow', fields: ['t', null] },
    ]);
  });

  test.each([3, 257])('a secret key of %i bytes is refused', (byteCount) => {
    expect(() => writer.encodeBackendKeyData(1, Buffer.alloc(byteCount))).toThrow(AssertionError);
    expect(() => writer.encodeCancelRequest(1, Buffer.alloc(byteCount))).toThrow(AssertionError);
  });

  test('an empty startup parameter name is refused: it would end the packet early', () => {
    expect(() => writer.encodeStartup({ '': 'x', user: 'u' })).toThrow(AssertionError);
  });
});

test('no two messages of one direction share a type, except the four answers to authentication', () => {
  const backend = Object.values(codes.BackendMessage);
  expect(new Set(backend).size).toBe(backend.length);
  const frontend = Object.values(codes.FrontendMessage).filter((type) => type !== 0x70);
  expect(new Set(frontend).size).toBe(frontend.length);
});
