import { describe, expect, test } from 'vitest';
import { RequestCode } from '../../src/protocol/codes.ts';
import { encodeCancelRequest, encodeStartup } from '../../src/protocol/message-writer.ts';
import { PgError } from '../../src/protocol/pg-error.ts';
import { parseStartupOptions } from '../../src/protocol/startup-options.ts';
import {
  checkStartupPacketLength,
  decodeFirstPacket,
  type FirstPacket,
  type StartupPacket,
} from '../../src/protocol/startup-packet.ts';
import { requestPacket } from '../support/scripted-client.ts';

const V3 = 0x0003_0000;

function decode(bytes: Buffer): FirstPacket {
  // Behind a stranger's bytes, so that an offset counted from 0 shows.
  const shifted = Buffer.concat([Buffer.from('??'), bytes, Buffer.from('!!')]);
  return decodeFirstPacket(shifted, 2, shifted.length - 2);
}

function startup(parameters: Record<string, string>, protocol?: number): StartupPacket {
  const packet = decode(encodeStartup(parameters, protocol));
  if (packet.kind !== 'startup') throw new Error(`decoded as ${packet.kind}`);
  return packet.startup;
}

function fault(step: () => unknown): PgError {
  try {
    step();
  } catch (error) {
    if (error instanceof PgError) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

/** A startup packet from raw strings, for what encodeStartup would refuse to write. */
function rawStartup(body: string | Buffer, version: number = V3): Buffer {
  return requestPacket(version, Buffer.from(body));
}

describe('requests that are no startup', () => {
  test('SSLRequest and GSSENCRequest are told apart by their code', () => {
    expect(decode(requestPacket(RequestCode.SSLRequest))).toEqual({ kind: 'ssl' });
    expect(decode(requestPacket(RequestCode.GSSENCRequest))).toEqual({ kind: 'gssenc' });
  });

  test('an SSLRequest with a body is malformed, not a startup', () => {
    const error = fault(() => decode(requestPacket(RequestCode.SSLRequest, Buffer.from([0]))));
    expect(error).toMatchObject({ code: '08P01', severity: 'FATAL' });
  });

  test.each([4, 5, 32, 256])('a cancel key of %i bytes is taken and copied', (byteCount) => {
    const secret = Buffer.alloc(byteCount, 0xa5);
    const bytes = encodeCancelRequest(-2, secret);
    const packet = decode(bytes);
    bytes.fill(0);
    expect(packet).toEqual({ kind: 'cancel', processId: -2, secret });
  });

  test.each([0, 3, 257])('a cancel key of %i bytes is refused', (byteCount) => {
    const body = Buffer.concat([Buffer.from([0, 0, 0, 7]), Buffer.alloc(byteCount)]);
    expect(fault(() => decode(requestPacket(RequestCode.CancelRequest, body))).code).toBe('08P01');
  });

  test('a cancel request without a process id is refused', () => {
    expect(fault(() => decode(requestPacket(RequestCode.CancelRequest, Buffer.from([1])))).code).toBe(
      '08P01',
    );
  });
});

describe('length', () => {
  test.each([8, 10_000])('%i bytes are in order', (byteCount) => {
    expect(() => checkStartupPacketLength(byteCount)).not.toThrow();
  });

  test.each([-1, 0, 7, 10_001, 0x7fff_ffff, -0x8000_0000])('%i bytes are refused', (byteCount) => {
    expect(fault(() => checkStartupPacketLength(byteCount))).toMatchObject({
      code: '08P01',
      severity: 'FATAL',
      message: 'invalid length of startup packet',
    });
  });

  test('a packet of exactly 10,000 bytes is decoded', () => {
    const fill = 10_000 - encodeStartup({ user: 'u', application_name: '' }).length;
    const packet = startup({ user: 'u', application_name: 'a'.repeat(fill) });
    expect(packet.settings.get('application_name')).toHaveLength(fill);
  });

  test('a declared length that is not that of the bytes is refused, whichever is longer', () => {
    const bytes = encodeStartup({ user: 'u' });
    for (const lie of [bytes.length - 1, bytes.length + 1]) {
      const liar = Buffer.from(bytes);
      liar.writeInt32BE(lie, 0);
      expect(fault(() => decode(liar)).code).toBe('08P01');
    }
  });

  test('every truncation of a good packet is refused, with its length corrected or not', () => {
    const bytes = encodeStartup({ user: 'alice', database: 'app', options: '-c a=b' });
    for (let length = 0; length < bytes.length; length++) {
      const cut = Buffer.from(bytes.subarray(0, length));
      expect(fault(() => decode(cut)).code).toBe('08P01');
      if (length < 8) continue;
      cut.writeInt32BE(length, 0);
      expect(fault(() => decode(cut)).severity).toBe('FATAL');
    }
  });
});

describe('protocol versions', () => {
  test.each([
    [0x0003_0000, 0, false],
    [0x0003_0001, 1, false],
    [0x0003_0002, 2, false],
    [0x0003_0003, 2, true],
    [0x0003_270f, 2, true],
    [0x0003_ffff, 2, true],
  ])('%i goes on as minor %i, newer asked: %s', (version, minor, newer) => {
    const packet = startup({ user: 'u' }, version);
    expect(packet).toMatchObject({ protocolMinor: minor, newerProtocolAsked: newer });
  });

  test.each([
    [0x0002_0000, '2.0'],
    [0x0004_0000, '4.0'],
    [0x0001_0000, '1.0'],
    [0, '0.0'],
    [0xffff_ffff | 0, '65535.65535'],
    [RequestCode.SSLRequest + 3, '1234.5682'],
  ])('%i is an unsupported protocol', (version, words) => {
    expect(fault(() => decode(rawStartup('user\0u\0\0', version)))).toMatchObject({
      code: '0A000',
      severity: 'FATAL',
      message: `unsupported frontend protocol ${words}: server supports 3.0 to 3.2`,
    });
  });

  test('protocol extensions are reported as spelled and are no settings', () => {
    const packet = startup({ user: 'u', '_pq_.Compression': 'on', '_pq_.x': '' });
    expect(packet.unknownExtensions).toEqual(['_pq_.Compression', '_pq_.x']);
    expect(packet.settings.size).toBe(0);
  });
});

describe('user and database', () => {
  test('the database is the user when it is missing or empty', () => {
    expect(startup({ user: 'alice' }).database).toBe('alice');
    expect(startup({ user: 'alice', database: '' }).database).toBe('alice');
    expect(startup({ database: 'app', user: 'alice' }).database).toBe('app');
  });

  test.each([[{}], [{ user: '' }], [{ database: 'app' }]])('%j names no user', (parameters) => {
    expect(fault(() => startup(parameters as Record<string, string>))).toMatchObject({
      code: '28000',
      message: 'no PostgreSQL user name specified in startup packet',
    });
  });

  test('63 bytes are a name, 64 are refused and never cut, counted in bytes of UTF-8', () => {
    const longest = `${'ä'.repeat(31)}x`;
    expect(startup({ user: longest, database: longest }).user).toBe(longest);
    expect(fault(() => startup({ user: `${longest}x` })).code).toBe('28000');
    expect(fault(() => startup({ user: 'u', database: `${longest}x` })).code).toBe('3D000');
  });

  test('names that are no UTF-8 are refused, since two of them would decode alike', () => {
    const user = Buffer.from('user\0a\xff\0\0', 'latin1');
    expect(fault(() => decode(rawStartup(user))).code).toBe('28000');
    const database = Buffer.from('user\0a\0database\0\xc3\0\0', 'latin1');
    expect(fault(() => decode(rawStartup(database))).code).toBe('3D000');
  });
});

describe('layout of parameters', () => {
  test.each([
    ['no terminator', 'user\0u\0'],
    ['a name without a value', 'user\0u\0x\0'],
    ['a value without a NUL', 'user\0u\0x\0y'],
    ['bytes behind the terminator', 'user\0u\0\0x\0y\0\0'],
    ['a second terminator', 'user\0u\0\0\0'],
    ['nothing at all', ''],
  ])('%s is malformed', (_what, body) => {
    expect(fault(() => decode(rawStartup(body))).code).toBe('08P01');
  });

  test.each([
    ['user\0a\0user\0b\0\0'],
    ['user\0a\0database\0x\0database\0x\0\0'],
    ['user\0a\0options\0\0options\0\0\0'],
    ['user\0a\0TimeZone\0UTC\0timezone\0UTC\0\0'],
    ['user\0a\0_pq_.a\x001\0_pq_.A\x001\0\0'],
  ])('a parameter given twice is refused: %j', (body) => {
    expect(fault(() => decode(rawStartup(body)))).toMatchObject({
      code: '08P01',
      reason: 'duplicate_parameter',
    });
  });
});

describe('settings', () => {
  test('names come out in lower case, values as they were', () => {
    const packet = startup({ user: 'u', TimeZone: 'Europe/Berlin', application_name: ' A=b ', 'My.Own': '' });
    expect([...packet.settings]).toEqual([
      ['timezone', 'Europe/Berlin'],
      ['application_name', ' A=b '],
      ['my.own', ''],
    ]);
  });

  const badNames = [
    'x" TO DEFAULT; RESET ROLE; --',
    '1a',
    'a b',
    '-a',
    'a-b',
    'é',
    "a'",
    'a'.repeat(64),
    '.a',
  ];
  test.each(badNames)('%j is no parameter name', (name) => {
    expect(fault(() => startup({ user: 'u', [name]: 'v' }))).toMatchObject({
      code: '42704',
      severity: 'FATAL',
    });
  });

  const protectedNames = [
    'role',
    'ROLE',
    'session_authorization',
    'Session_Authorization',
    'is_superuser',
    'request.jwt.claims',
    'request.jwt',
    'Request.JWT.claim.sub',
    'turnstile.mac',
    'turnstile',
  ];
  test.each(protectedNames)('%s cannot be set, as a parameter or by any form of options', (name) => {
    const expected = {
      code: '42501',
      severity: 'FATAL',
      message: `permission denied to set parameter "${name.toLowerCase()}"`,
    };
    expect(fault(() => startup({ user: 'u', [name]: 'postgres' }))).toMatchObject(expected);
    for (const options of [
      `-c ${name}=x`,
      `-c${name}=x`,
      `--${name}=x`,
      `-c a=b --${name.replaceAll('_', '-')}=x`,
      `-c ${name}=`,
      `-c \\${name}=x`,
      `\\-\\c\t\n${name}\\=x`,
    ]) {
      expect(
        fault(() => startup({ user: 'u', options })),
        options,
      ).toMatchObject(expected);
    }
  });

  test('names that only begin like a protected one are settings', () => {
    const packet = startup({ user: 'u', role_name: '1', 'requestxjwt.a': '2', turnstiles: '3' });
    expect([...packet.settings.keys()]).toEqual(['role_name', 'requestxjwt.a', 'turnstiles']);
  });

  test.each([
    'User',
    'DATABASE',
    'Options',
    'Replication',
  ])('%s is not taken for a setting or for its lower-case namesake', (name) => {
    expect(fault(() => startup({ user: 'u', [name]: 'x' })).code).toBe('42704');
    expect(fault(() => startup({ user: 'u', options: `-c ${name}=x` })).code).toBe('42704');
  });

  test('a lower-case user in options does not become the user', () => {
    expect(fault(() => startup({ user: 'u', options: '-c user=root' })).code).toBe('42704');
  });

  test('an escaped space before the name makes another name, which is none', () => {
    expect(fault(() => startup({ user: 'u', options: '-c\\ role=x' })).code).toBe('42704');
  });

  test('a parameter of its own beats options; in options the last one counts', () => {
    const packet = startup({ options: '-c a.b=1 -c A.B=2 -c work_mem=1MB', user: 'u', work_mem: '2MB' });
    expect(Object.fromEntries(packet.settings)).toEqual({ 'a.b': '2', work_mem: '2MB' });
  });
});

describe('replication', () => {
  test.each(['false', 'off', '0', 'no', 'OFF'])('%s is an ordinary session', (replication) => {
    expect(startup({ user: 'u', replication }).settings.has('replication')).toBe(false);
  });

  test.each(['true', 'on', '1', 'yes', 'database', '', 'fals', 'f '])('%j is refused', (replication) => {
    expect(fault(() => startup({ user: 'u', replication }))).toMatchObject({
      code: '28000',
      severity: 'FATAL',
    });
  });
});

describe('the options string', () => {
  test.each<[string, [string, string][]]>([
    ['', []],
    [' \t\n\v\f\r ', []],
    ['-c a=b', [['a', 'b']]],
    ['-ca=b', [['a', 'b']]],
    ['--a=b', [['a', 'b']]],
    [
      '  -c  a=b  --c=d ',
      [
        ['a', 'b'],
        ['c', 'd'],
      ],
    ],
    ['--search-path=a,b', [['search_path', 'a,b']]],
    ['-c search-path=a-b', [['search_path', 'a-b']]],
    ['-c a=b=c', [['a', 'b=c']]],
    ['-c a=', [['a', '']]],
    ['-c a=b\\ c', [['a', 'b c']]],
    ['-c a=\\\\x', [['a', '\\x']]],
    ['-c a=b\\', [['a', 'b']]],
    ["-c a='b c'".replace(' c', '\\ c'), [['a', "'b c'"]]],
    ['-c -c=1', [['_c', '1']]],
  ])('%j', (options, settings) => {
    expect(parseStartupOptions(options)).toEqual(settings);
  });

  test.each([
    '-c',
    '-c a',
    '-c =b',
    '--',
    '--a',
    '--=b',
    '-d 5',
    '-e',
    'a=b',
    '-',
    '-c a=b c=d',
    '\\',
    '-C a=b',
  ])('%j is refused', (options) => {
    expect(fault(() => parseStartupOptions(options))).toMatchObject({ code: '42601', severity: 'FATAL' });
  });
});

test('random bytes are decoded or refused, never anything else', () => {
  const seed = Math.trunc(Math.random() * 2 ** 31);
  let state = seed;
  const random = (below: number): number => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) & 0x7fff_ffff;
    return (state >>> 8) % below;
  };
  const good = encodeStartup({ user: 'alice', database: 'app', options: '-c a=b', TimeZone: 'UTC' });
  const outcomes = { decoded: 0, refused: 0 };
  for (let round = 0; round < 5_000; round++) {
    const bytes = Buffer.from(good);
    for (let changes = random(4); changes >= 0; changes--) bytes[4 + random(bytes.length - 4)] = random(256);
    try {
      decode(bytes);
      outcomes.decoded++;
    } catch (error) {
      expect(error, `seed ${seed}, round ${round}`).toBeInstanceOf(PgError);
      expect((error as PgError).severity).toBe('FATAL');
      outcomes.refused++;
    }
  }
  expect(outcomes.decoded, `seed ${seed}`).toBeGreaterThan(0);
  expect(outcomes.refused, `seed ${seed}`).toBeGreaterThan(0);
});
