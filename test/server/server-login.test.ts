/** The login at a scripted server: who we are afterwards, every method, TLS, and servers that mean us harm. */
import { createHash } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import tls from 'node:tls';
import { inspect } from 'node:util';
import { afterEach, describe, expect, onTestFinished, test, vi } from 'vitest';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { ScramServer } from '../../src/auth/scram-server.ts';
import { AssertionError } from '../../src/base/assert.ts';
import { Secret } from '../../src/base/secret.ts';
import { TxStatus } from '../../src/protocol/codes.ts';
import {
  decodeBindValues,
  decodeParse,
  decodePassword,
  decodeSASLInitialResponse,
} from '../../src/protocol/frontend-messages.ts';
import * as encode from '../../src/protocol/message-writer.ts';
import { LOGIN_MESSAGE_BYTES_MAX } from '../../src/server/login-channel.ts';
import { type OpenedServer, openServerConnection, type ServerTarget } from '../../src/server/server-login.ts';
import { ServerLoginError } from '../../src/server/server-login-error.ts';
import { makeCertificate } from '../support/certificates.ts';
import { type RoleRow, type Script, type ScriptedPeer, ScriptedServer } from '../support/scripted-server.ts';

const PASSWORD = 'correct horse';
const scramKeys = new ScramKeys();

afterEach(() => {
  vi.restoreAllMocks();
});

function targetAt(port: number, change: Partial<ServerTarget> = {}): ServerTarget {
  return {
    host: '127.0.0.1',
    port,
    database: 'app',
    user: 'alice',
    password: new Secret(PASSWORD),
    setRole: null,
    backendIdentity: null,
    loginGroup: null,
    tls: { mode: 'disabled', caCertificate: null },
    startupParameters: {},
    connectTimeoutMs: 10_000,
    keepalive: { enabled: true, initialDelayMs: 1_000 },
    ...change,
  };
}

/** Logs in at a server that runs this script and then waits until we leave, which we must. */
async function login(script: Script, change: Partial<ServerTarget> = {}): Promise<OpenedServer> {
  const server = await ScriptedServer.listen(async (peer) => {
    await script(peer);
    await peer.untilClosed();
  });
  onTestFinished(() => server.finished());
  const opened = await openServerConnection(targetAt(server.port, change), { scramKeys });
  onTestFinished(() => void opened.socket.destroy());
  return opened;
}

/** The same for a login that must fail; nothing in the error may show the password. */
async function failure(script: Script, change: Partial<ServerTarget> = {}): Promise<ServerLoginError> {
  const outcome = await login(script, change).catch((error: unknown) => error);
  expect(outcome).toBeInstanceOf(ServerLoginError);
  expect(inspect(outcome, { depth: 9 })).not.toContain(PASSWORD);
  return outcome as ServerLoginError;
}

/** A server that breaks the script's order on purpose must not fail the test by seeing us leave. */
async function orLeft(work: Promise<unknown>): Promise<void> {
  await work.catch(() => {});
}

/** Every socket opened from now on believes that its peer has this address. */
function pretendPeer(address: string | undefined): void {
  const withAddress = <S extends net.Socket>(socket: S): S =>
    Object.defineProperty(socket, 'remoteAddress', { value: address });
  const connect = net.connect as (options: net.NetConnectOpts) => net.Socket;
  vi.spyOn(net, 'connect').mockImplementation(((options: net.NetConnectOpts) =>
    withAddress(connect(options))) as typeof net.connect);
  const connectTls = tls.connect as (options: tls.ConnectionOptions) => tls.TLSSocket;
  vi.spyOn(tls, 'connect').mockImplementation(((options: tls.ConnectionOptions) =>
    withAddress(connectTls(options))) as typeof tls.connect);
}

describe('the opened connection', () => {
  test('tells everything the server said, and is quiet', async () => {
    let startup: Record<string, string> = {};
    const opened = await login(
      async (peer) => {
        startup = await peer.acceptLogin({
          parameters: { TimeZone: 'UTC' },
          processId: 99,
          secretKey: Buffer.alloc(32, 5),
        });
      },
      { startupParameters: { statement_timeout: '5000', application_name: 'x' } },
    );
    expect(startup).toEqual({
      client_encoding: 'UTF8',
      statement_timeout: '5000',
      application_name: 'x',
      user: 'alice',
      database: 'app',
    });
    expect(opened).toMatchObject({
      processId: 99,
      secretKey: Buffer.alloc(32, 5),
      serverVersion: '15.7',
      serverVersionNumber: 150007,
      sessionUser: 'alice',
      currentUser: 'alice',
      encrypted: false,
    });
    expect(opened.parameters.get('TimeZone')).toBe('UTC');
    expect(opened.leftover.length).toBe(0);
    const fresh = new net.Socket();
    for (const event of ['data', 'error', 'end', 'close', 'readable', 'timeout', 'connect']) {
      expect(opened.socket.listenerCount(event), event).toBe(fresh.listenerCount(event));
    }
    expect(opened.socket.isPaused()).toBe(true);
  });

  test('a login that comes byte by byte is the same login', async () => {
    const opened = await login(async (peer) => {
      await peer.readStartup();
      const send = vi.spyOn(peer, 'send').mockImplementation(() => {});
      peer.sendLoggedIn();
      const bytes = Buffer.concat(send.mock.calls.flat() as Buffer[]);
      send.mockRestore();
      await peer.sendInPieces(bytes);
      await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
    });
    expect(opened.processId).toBe(4711);
  });

  test('bytes behind the last ReadyForQuery are handed over, not lost', async () => {
    const notice = encode.encodeNotice({ code: '01000', message: 'late' });
    const opened = await login(async (peer) => {
      await peer.readStartup();
      peer.sendLoggedIn();
      await peer.readRequest();
      peer.send(...identityReply('alice', 'alice'), notice);
    });
    const rest = opened.leftover.length > 0 ? opened.leftover : await nextBytes(opened.socket);
    expect(rest).toEqual(notice);
  });

  test.each([
    ['18beta1', 180000],
    ['9.6.24', 90624],
    ['16.4 (Debian 16.4-1.pgdg120+1)', 160004],
    ['unknown', 0],
  ])('server_version %s is number %i', async (version, number) => {
    const opened = await login(async (peer) => {
      await peer.acceptLogin({ parameters: { server_version: version } });
    });
    expect(opened.serverVersionNumber).toBe(number);
  });

  test('a server without BackendKeyData is fine: it cannot be cancelled, no more', async () => {
    const opened = await login(async (peer) => {
      await peer.readStartup();
      peer.send(encode.encodeAuthenticationOk(), encode.encodeReadyForQuery(TxStatus.Idle));
      await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
    });
    expect(opened).toMatchObject({ processId: 0, secretKey: Buffer.alloc(0), serverVersion: '' });
  });

  test('a host with a slash is a Unix socket, and TLS is not asked for there', async () => {
    const directory = await mkdtemp(path.join(os.tmpdir(), 'login-'));
    onTestFinished(() => rm(directory, { recursive: true }));
    const server = await ScriptedServer.listen(
      async (peer) => {
        await peer.acceptLogin();
        await peer.untilClosed();
      },
      path.join(directory, '.s.PGSQL.5432'),
    );
    onTestFinished(() => server.finished());
    const target = targetAt(5432, { host: directory, tls: { mode: 'verify_full', caCertificate: null } });
    const opened = await openServerConnection(target, { scramKeys });
    expect(opened.encrypted).toBe(false);
    opened.socket.destroy();
  });

  test.each([
    'role',
    'session_authorization',
    'replication',
    'options',
  ])('the startup parameter %s is never sent on our behalf', async (name) => {
    const target = targetAt(1, { startupParameters: { [name]: 'x' } });
    await expect(openServerConnection(target, { scramKeys })).rejects.toThrow(AssertionError);
  });

  test('startup parameters cannot replace the user or the database', async () => {
    let startup: Record<string, string> = {};
    await login(
      async (peer) => {
        startup = await peer.acceptLogin();
      },
      { startupParameters: { user: 'postgres', database: 'other' } },
    );
    expect(startup).toMatchObject({ user: 'alice', database: 'app' });
  });
});

function nextBytes(socket: net.Socket): Promise<Buffer> {
  return new Promise((resolve) => {
    socket.once('data', resolve);
    socket.resume();
  });
}

function identityReply(sessionUser: string, currentUser: string): Buffer[] {
  return [
    encode.PARSE_COMPLETE,
    encode.BIND_COMPLETE,
    encode.encodeDataRow([sessionUser, currentUser, currentUser, 'f', 'f', 'f', 'f', 't', null, 'f', 'f']),
    encode.encodeCommandComplete('SELECT 1'),
    encode.encodeReadyForQuery(TxStatus.Idle),
  ];
}

describe('identity', () => {
  test('the role goes as a parameter, the functions are qualified, and both roles are described', async () => {
    const role = `Ro"le'; DROP`;
    let parses: string[] = [];
    let values: (string | undefined)[] = [];
    const opened = await login(
      async (peer) => {
        await peer.readStartup();
        peer.sendLoggedIn({ parameters: { is_superuser: 'on' } });
        const request = await peer.answerIdentity('alice', role, [
          { name: 'alice', superuser: true, createRole: true, maySetRole: true },
          { name: role, canLogin: false, bypassRls: true, replication: true, validUntil: '1924992000' },
        ]);
        parses = request
          .filter(({ type }) => type === 'P')
          .map(({ body }) => decodeParse(body, 0, body.length).sql);
        values = request
          .filter(({ type }) => type === 'B')
          .flatMap(({ body }) => decodeBindValues(body, 0, body.length).map((value) => value?.toString()));
      },
      { setRole: role },
    );
    expect(parses[0]).toBe("SELECT pg_catalog.set_config('role', $1, false)");
    expect(values).toEqual([role, undefined]);
    // Outside literals every function, table, type and operator is pg_catalog's.
    expect(
      parses[1]!.match(/::(?!pg_catalog\.)|FROM (?!pg_catalog\.)| = |(?<!pg_catalog\.)date_part/),
    ).toBeNull();
    expect(opened).toMatchObject({ sessionUser: 'alice', currentUser: role });
    expect(opened.attributes.sessionUser).toEqual({
      name: 'alice',
      superuser: true,
      bypassRls: false,
      replication: false,
      createRole: true,
      canLogin: true,
      validUntilMs: null,
      inLoginGroup: null,
      maySetRole: true,
    });
    expect(opened.attributes.role).toEqual({
      name: role,
      superuser: false,
      bypassRls: true,
      replication: true,
      createRole: false,
      canLogin: false,
      validUntilMs: 1_924_992_000_000,
      inLoginGroup: null,
      maySetRole: false,
    });
  });

  test('a parameter that changes with the role is kept with its last value', async () => {
    const opened = await login(
      async (peer) => {
        await peer.readStartup();
        peer.sendLoggedIn({ parameters: { is_superuser: 'on' } });
        peer.send(encode.encodeParameterStatus('is_superuser', 'off'));
        await peer.answerIdentity('alice', 'bob', [{ name: 'alice' }, { name: 'bob' }]);
      },
      { setRole: 'bob' },
    );
    expect(opened.parameters.get('is_superuser')).toBe('off');
  });

  test.each([
    ['1500000000', 1_500_000_000_000],
    ['0', 0],
    ['-86400', -86_400_000],
    [null, null],
  ])('VALID UNTIL %s is %s', async (validUntil, expected) => {
    const opened = await login(async (peer) => {
      await peer.readStartup();
      peer.sendLoggedIn();
      await peer.answerIdentity('alice', 'alice', [{ name: 'alice', validUntil }]);
    });
    expect(opened.attributes.role.validUntilMs).toBe(expected);
  });

  test.each([
    'Infinity',
    '1e9',
    '1500000000.5',
    '',
    'soon',
  ])('VALID UNTIL %j, which the query never answers, ends the login', async (validUntil) => {
    const error = await failure(async (peer) => {
      await peer.readStartup();
      peer.sendLoggedIn();
      await peer.answerIdentity('alice', 'alice', [{ name: 'alice', validUntil }]);
    });
    expect(error.kind).toBe('identity');
  });

  test('the login group goes as a parameter, and membership counts only where it was asked about', async () => {
    for (const loginGroup of ['jwt_users', null]) {
      let values: (string | undefined)[] = [];
      const opened = await login(
        async (peer) => {
          await peer.readStartup();
          peer.sendLoggedIn();
          const request = await peer.answerIdentity('alice', 'alice', [
            { name: 'alice', inLoginGroup: true },
          ]);
          const bind = request.find(({ type }) => type === 'B')!;
          values = decodeBindValues(bind.body, 0, bind.body.length).map((value) => value?.toString());
        },
        { loginGroup },
      );
      expect(values).toEqual([loginGroup ?? undefined]);
      expect(opened.attributes.role.inLoginGroup).toBe(loginGroup === null ? null : true);
    }
  });

  test('a role that logs in as itself gives up what ALTER ROLE … SET role took before it asks who is here', async () => {
    let values: unknown[] = [];
    await login(
      async (peer) => {
        await peer.readStartup();
        peer.sendLoggedIn();
        const request = await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
        const bind = request.find(({ type }) => type === 'B')!;
        values = decodeBindValues(bind.body, 0, bind.body.length).map(String);
      },
      { backendIdentity: 'login_password' },
    );
    expect(values).toEqual(['none']);
  });

  const MISMATCHES: [string, string | null, string, string, RoleRow[]][] = [
    ['SET ROLE that changed nothing', 'bob', 'alice', 'alice', [{ name: 'alice' }]],
    ['the role "none", which is no role', 'none', 'alice', 'alice', [{ name: 'alice' }]],
    ['another role', 'bob', 'alice', 'carol', [{ name: 'alice' }, { name: 'carol' }]],
    ['a role set by ALTER ROLE', null, 'alice', 'carol', [{ name: 'alice' }, { name: 'carol' }]],
    ['another session user', null, 'postgres', 'alice', [{ name: 'alice' }]],
    ['a name that differs in case only', 'Bob', 'alice', 'bob', [{ name: 'alice' }, { name: 'bob' }]],
    ['no row', null, 'alice', 'alice', []],
    ['a role that is not described', 'bob', 'alice', 'bob', [{ name: 'alice' }]],
  ];
  test.each(MISMATCHES)('%s ends the login', async (_name, setRole, sessionUser, currentUser, roles) => {
    const error = await failure(
      async (peer) => {
        await peer.readStartup();
        peer.sendLoggedIn();
        await peer.answerIdentity(sessionUser, currentUser, roles);
      },
      { setRole },
    );
    expect(error).toMatchObject({ kind: 'identity', code: '28000', fromServer: false });
  });

  test('a role that PostgreSQL refuses keeps PostgreSQL’s words', async () => {
    const error = await failure(
      async (peer) => {
        await peer.readStartup();
        peer.sendLoggedIn();
        await peer.readRequest();
        peer.send(
          encode.PARSE_COMPLETE,
          encode.BIND_COMPLETE,
          encode.encodeErrorResponse({ code: '22023', message: 'role "bob" does not exist' }),
          encode.encodeReadyForQuery(TxStatus.Idle),
        );
      },
      { setRole: 'bob' },
    );
    expect(error).toMatchObject({ kind: 'identity', code: '22023', fromServer: true });
    expect(error.toPgError().message).toBe('role "bob" does not exist');
  });

  test('a role with a NUL is refused before a byte of it is sent', async () => {
    const error = await failure(
      async (peer) => {
        await peer.readStartup();
        peer.sendLoggedIn();
      },
      { setRole: 'a\0b' },
    );
    expect(error.kind).toBe('identity');
  });

  test('an answer that leaves the role’s command out is not believed, even with the right names', async () => {
    const error = await failure(
      async (peer) => {
        await peer.readStartup();
        peer.sendLoggedIn();
        await peer.readRequest();
        peer.send(...identityReply('alice', 'bob'));
      },
      { setRole: 'bob' },
    );
    expect(error.kind).toBe('protocol');
  });
});

describe('authentication', () => {
  test('a clear-text password goes to a loopback peer', async () => {
    let sent = '';
    await login(async (peer) => {
      await peer.readStartup();
      peer.send(encode.encodeAuthenticationCleartextPassword());
      const body = await peer.expect('p');
      sent = decodePassword(body, 0, body.length);
      peer.sendLoggedIn();
      await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
    });
    expect(sent).toBe(PASSWORD);
  });

  test.each([
    '192.0.2.1',
    '::ffff:192.0.2.1',
    '2001:db8::1',
    '12.127.0.1',
    undefined,
  ])('a clear-text password is not sent unencrypted to %s', async (address) => {
    pretendPeer(address);
    const error = await failure(async (peer) => {
      await peer.readStartup();
      peer.send(encode.encodeAuthenticationCleartextPassword());
      await expect(peer.readFrame()).rejects.toThrow('the peer left');
    });
    expect(error).toMatchObject({ kind: 'refused', fromServer: false });
    expect(error.message).toContain('clear text');
  });

  test.each(['::1', '127.8.9.1', '::ffff:127.0.0.1'])('%s is a loopback address', async (address) => {
    pretendPeer(address);
    await login(async (peer) => {
      await peer.readStartup();
      peer.send(encode.encodeAuthenticationCleartextPassword());
      await peer.expect('p');
      peer.sendLoggedIn();
      await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
    });
  });

  test('md5 is answered with the salted hash of PostgreSQL', async () => {
    const md5 = (...parts: (string | Buffer)[]): string =>
      parts.reduce((hash, part) => hash.update(part), createHash('md5')).digest('hex');
    const salt = Buffer.from('01f2e3d4', 'hex');
    let sent = '';
    await login(async (peer) => {
      await peer.readStartup();
      peer.send(encode.encodeAuthenticationMD5Password(salt));
      const body = await peer.expect('p');
      sent = decodePassword(body, 0, body.length);
      peer.sendLoggedIn();
      await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
    });
    expect(sent).toBe(`md5${md5(md5(PASSWORD, 'alice'), salt)}`);
  });

  test('SCRAM-SHA-256 with both proofs', async () => {
    const opened = await login(async (peer) => {
      await peer.readStartup();
      const verdict = await scram(peer);
      peer.send(encode.encodeAuthenticationSASLFinal(verdict!));
      peer.sendLoggedIn();
      await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
    });
    expect(opened.sessionUser).toBe('alice');
  });

  test('a wrong password is PostgreSQL’s refusal, word for word', async () => {
    const error = await failure(
      async (peer) => {
        await peer.readStartup();
        expect(await scram(peer)).toBeNull();
        peer.send(
          encode.encodeErrorResponse({
            code: '28P01',
            message: 'password authentication failed for user "alice"',
            severity: 'FATAL',
            detail: 'd',
            hint: 'h',
          }),
        );
        peer.end();
      },
      { password: new Secret('wrong') },
    );
    expect(error).toMatchObject({ kind: 'refused', code: '28P01', detail: 'd', hint: 'h', fromServer: true });
    expect(error.toPgError()).toMatchObject({
      message: 'password authentication failed for user "alice"',
      code: '28P01',
      severity: 'FATAL',
      detail: 'd',
      hint: 'h',
      reason: 'server_refused',
      safeToRetry: true,
    });
  });

  const BROKEN: [string, Script][] = [
    [
      'AuthenticationOk in place of the server’s proof',
      async (peer) => {
        await scram(peer);
        peer.sendLoggedIn();
      },
    ],
    [
      'a wrong proof',
      async (peer) => {
        await scram(peer);
        peer.send(encode.encodeAuthenticationSASLFinal(`v=${Buffer.alloc(32).toString('base64')}`));
        peer.sendLoggedIn();
      },
    ],
    [
      'a proof before the challenge',
      async (peer) => {
        peer.send(encode.encodeAuthenticationSASL(['SCRAM-SHA-256']));
        await peer.expect('p');
        peer.send(encode.encodeAuthenticationSASLFinal('v=AAAA'));
      },
    ],
    [
      'a second challenge',
      async (peer) => {
        await scram(peer);
        peer.send(encode.encodeAuthenticationSASLContinue('r=x,s=AAAA,i=4096'));
      },
    ],
    [
      'a challenge for another nonce',
      async (peer) => {
        peer.send(encode.encodeAuthenticationSASL(['SCRAM-SHA-256']));
        await peer.expect('p');
        peer.send(encode.encodeAuthenticationSASLContinue('r=other,s=AAAA,i=4096'));
      },
    ],
    [
      'an iteration count that would cost hours',
      async (peer) => {
        peer.send(encode.encodeAuthenticationSASL(['SCRAM-SHA-256']));
        const body = await peer.expect('p');
        const nonce = /r=(.*)$/.exec(body.toString())![1];
        peer.send(encode.encodeAuthenticationSASLContinue(`r=${nonce}x,s=AAAA,i=2147483647`));
      },
    ],
    [
      'a wish for the clear-text password after SCRAM',
      async (peer) => {
        await scram(peer);
        peer.send(encode.encodeAuthenticationCleartextPassword());
      },
    ],
    [
      'a wish for the clear-text password after md5',
      async (peer) => {
        peer.send(encode.encodeAuthenticationMD5Password(Buffer.alloc(4)));
        await peer.expect('p');
        peer.send(encode.encodeAuthenticationCleartextPassword());
      },
    ],
  ];
  test.each(BROKEN)('%s is not believed, and the password is not sent', async (_name, script) => {
    const error = await failure(async (peer) => {
      await peer.readStartup();
      await script(peer);
      await expect(peer.readFrame()).rejects.toThrow('the peer left');
    });
    expect(error.kind).toBe('protocol');
  });

  const REFUSED: [string, Buffer, Partial<ServerTarget>][] = [
    ['no password is configured', encode.encodeAuthenticationCleartextPassword(), { password: null }],
    [
      'an empty password is configured',
      encode.encodeAuthenticationMD5Password(Buffer.alloc(4)),
      { password: new Secret('') },
    ],
    [
      'the password holds a NUL',
      encode.encodeAuthenticationCleartextPassword(),
      { password: new Secret('a\0b') },
    ],
    ['no SASL mechanism is known', encode.encodeAuthenticationSASL(['OAUTHBEARER']), {}],
    [
      'only a bound mechanism is offered without TLS',
      encode.encodeAuthenticationSASL(['SCRAM-SHA-256-PLUS']),
      {},
    ],
    ['GSSAPI is asked for', Buffer.from('520000000800000007', 'hex'), {}],
  ];
  test.each(REFUSED)('when %s, nothing is sent', async (_name, request, change) => {
    const error = await failure(async (peer) => {
      await peer.readStartup();
      peer.send(request);
      await expect(peer.readFrame()).rejects.toThrow('the peer left');
    }, change);
    expect(error).toMatchObject({ kind: 'refused', fromServer: false });
  });

  test('a server that echoes the password does not get it into our error', async () => {
    const error = await failure(async (peer) => {
      await peer.readStartup();
      peer.send(encode.encodeAuthenticationCleartextPassword());
      await peer.expect('p');
      const text = `bad password ${PASSWORD}!`;
      peer.send(encode.encodeErrorResponse({ code: '28P01', message: text, detail: text, hint: text }));
    });
    expect(error).toMatchObject({
      message: 'bad password ****!',
      detail: 'bad password ****!',
      kind: 'refused',
    });
  });
});

/** SCRAM as a server, up to the verdict: the final message, or null when the proof is wrong. */
async function scram(peer: ScriptedPeer): Promise<Buffer | null> {
  const server = new ScramServer({ keys: scramKeys, user: 'alice', passwords: [new Secret(PASSWORD)] });
  peer.send(encode.encodeAuthenticationSASL(['SCRAM-SHA-256']));
  const first = await peer.expect('p');
  const { mechanism, data } = decodeSASLInitialResponse(first, 0, first.length);
  if (mechanism !== 'SCRAM-SHA-256') throw new Error(`unexpected mechanism ${mechanism}`);
  peer.send(encode.encodeAuthenticationSASLContinue(server.first(data!)));
  return await server.finish(await peer.expect('p'));
}

describe('TLS', () => {
  const authority = makeCertificate({ name: 'test authority', authority: true });
  const otherAuthority = makeCertificate({ name: 'other authority', authority: true });
  const rightName = makeCertificate({ name: '127.0.0.1', issuer: authority });
  const wrongName = makeCertificate({ name: 'elsewhere.example', issuer: authority });
  const selfSigned = makeCertificate({ name: '127.0.0.1' });
  const ca = authority.cert;

  const GOOD: [ServerTarget['tls']['mode'], string, typeof rightName, string | null][] = [
    ['prefer', 'any certificate', selfSigned, null],
    ['verify_ca', 'a certificate for another name', wrongName, ca],
    ['verify_full', 'a certificate for this name', rightName, ca],
  ];
  test.each(GOOD)('%s takes %s', async (mode, _name, certificate, caCertificate) => {
    const opened = await login(
      async (peer) => {
        await peer.answerSslRequest('S');
        const secured = await peer.startTls(certificate, { ALPNProtocols: ['postgresql'] });
        expect(secured.alpnProtocol).toBe('postgresql');
        await peer.acceptLogin();
      },
      { tls: { mode, caCertificate } },
    );
    expect(opened.encrypted).toBe(true);
    expect(opened.socket).toBeInstanceOf(tls.TLSSocket);
    expect(opened.socket.listenerCount('data')).toBe(0);
    expect(opened.socket.listenerCount('error')).toBe(0);
    expect(opened.socket.isPaused()).toBe(true);
  });

  test.each([
    ['in clear text', encode.encodeAuthenticationCleartextPassword()],
    ['md5', encode.encodeAuthenticationMD5Password(Buffer.from('salt'))],
  ])('login_password sends nothing to a server that asks %s, inside TLS neither', async (_, ask) => {
    let settle: (said: boolean) => void = () => {};
    const said = new Promise<boolean>((resolve) => {
      settle = resolve;
    });
    const error = await failure(
      async (peer) => {
        await peer.answerSslRequest('S');
        await peer.startTls(rightName, { ALPNProtocols: ['postgresql'] });
        await peer.readStartup();
        peer.send(ask);
        await peer.expect('p').then(
          () => settle(true),
          () => settle(false),
        );
      },
      { backendIdentity: 'login_password', tls: { mode: 'prefer', caCertificate: null } },
    );
    expect(error).toMatchObject({ kind: 'refused', code: '28000', fromServer: false });
    expect(await said).toBe(false);
  });

  describe('login_map', () => {
    const own = makeCertificate({ name: 'pooler', issuer: authority });
    const clientCertificate = { chain: own.cert, key: own.key };
    const byMap = (tls: Partial<ServerTarget['tls']> = {}): Partial<ServerTarget> => ({
      backendIdentity: 'login_map',
      tls: { mode: 'prefer', caCertificate: null, clientCertificate, ...tls },
    });

    test('shows the certificate, and needs no password', async () => {
      let shown = '';
      await login(async (peer) => {
        await peer.answerSslRequest('S');
        const secured = await peer.startTls(rightName, {
          ALPNProtocols: ['postgresql'],
          requestCert: true,
          rejectUnauthorized: false,
        });
        shown = secured.getPeerX509Certificate()?.subject ?? '';
        await peer.acceptLogin();
      }, byMap());
      expect(shown).toBe('CN=pooler');
    });

    test.each([
      ['clear text', encode.encodeAuthenticationCleartextPassword()],
      ['md5', encode.encodeAuthenticationMD5Password(Buffer.from('salt'))],
      ['SCRAM', encode.encodeAuthenticationSASL(['SCRAM-SHA-256'])],
    ])('sends no password to a server that asks for one in %s, and says which line is missing', async (_, ask) => {
      const error = await failure(async (peer) => {
        await peer.answerSslRequest('S');
        await peer.startTls(rightName, { ALPNProtocols: ['postgresql'] });
        await peer.readStartup();
        peer.send(ask);
      }, byMap());
      expect(error).toMatchObject({ kind: 'refused', code: '28000', fromServer: false });
      expect(error.message).toContain('pg_hba.conf');
    });

    test('a server without TLS gets no startup packet, in prefer neither', async () => {
      const error = await failure(async (peer) => peer.answerSslRequest('N'), byMap());
      expect(error.kind).toBe('tls');
    });

    test.each([
      ['TLS is disabled', { mode: 'disabled' as const }],
      ['there is no certificate', { clientCertificate: null }],
    ])('does not begin when %s', async (_, change) => {
      expect((await failure(async () => {}, byMap(change))).kind).toBe('tls');
    });
  });

  const BAD: [ServerTarget['tls']['mode'], string, typeof rightName, string | null][] = [
    ['verify_full', 'a certificate for another name', wrongName, ca],
    ['verify_full', 'a certificate of another authority', rightName, otherAuthority.cert],
    ['verify_ca', 'a certificate of another authority', rightName, otherAuthority.cert],
    ['verify_ca', 'a private certificate when the system’s authorities count', rightName, null],
    ['verify_ca', 'any certificate when the authority is no PEM', rightName, 'not a certificate'],
  ];
  test.each(
    BAD,
  )('%s does not take %s, and sends no startup packet', async (mode, _name, certificate, caCertificate) => {
    const error = await failure(
      async (peer) => {
        await peer.answerSslRequest('S');
        await orLeft(peer.startTls(certificate));
        await expect(peer.readBytes(1)).rejects.toThrow('the peer left');
      },
      { tls: { mode, caCertificate } },
    );
    expect(error).toMatchObject({ kind: 'tls', code: '08006' });
  });

  test('prefer goes on in the clear when the server has no TLS', async () => {
    const opened = await login(
      async (peer) => {
        await peer.answerSslRequest('N');
        await peer.acceptLogin();
      },
      { tls: { mode: 'prefer', caCertificate: null } },
    );
    expect(opened.encrypted).toBe(false);
  });

  test.each(['verify_ca', 'verify_full'] as const)('%s ends when the server has no TLS', async (mode) => {
    const error = await failure(
      async (peer) => {
        await peer.answerSslRequest('N');
        await expect(peer.readBytes(1)).rejects.toThrow('the peer left');
      },
      { tls: { mode, caCertificate: ca } },
    );
    expect(error.kind).toBe('tls');
  });

  test.each(['S', 'N'])('bytes behind the answer %s are a man in the middle', async (answer) => {
    const error = await failure(
      async (peer) => {
        await peer.answerSslRequest(`${answer}R`);
      },
      { tls: { mode: 'prefer', caCertificate: null } },
    );
    expect(error.kind).toBe('protocol');
  });

  test('an error instead of the answer is not shown: nobody vouches for it', async () => {
    const error = await failure(
      async (peer) => {
        await peer.answerSslRequest('E');
        peer.send('FATAL: pay here');
      },
      { tls: { mode: 'prefer', caCertificate: null } },
    );
    expect(['tls', 'protocol']).toContain(error.kind);
    expect(error.message).not.toContain('pay');
  });

  test('prefer does not fall back to clear text when the handshake fails', async () => {
    const server = await ScriptedServer.listen(async (peer) => {
      await peer.answerSslRequest('S');
      peer.end();
      await peer.untilClosed();
    });
    onTestFinished(() => server.finished());
    const target = targetAt(server.port, { tls: { mode: 'prefer', caCertificate: null } });
    await expect(openServerConnection(target, { scramKeys })).rejects.toMatchObject({ kind: 'tls' });
    expect(server.connectionCount).toBe(1);
  });

  test('a clear-text password may go over TLS to any address', async () => {
    pretendPeer('192.0.2.1');
    await login(
      async (peer) => {
        await peer.answerSslRequest('S');
        await peer.startTls(selfSigned);
        await peer.readStartup();
        peer.send(encode.encodeAuthenticationCleartextPassword());
        await peer.expect('p');
        peer.sendLoggedIn();
        await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
      },
      { tls: { mode: 'prefer', caCertificate: null } },
    );
  });

  test('SCRAM is bound to the certificate when the server offers it', async () => {
    let first = '';
    let final = '';
    const error = await failure(
      async (peer) => {
        await peer.answerSslRequest('S');
        await peer.startTls(selfSigned);
        await peer.readStartup();
        peer.send(encode.encodeAuthenticationSASL(['SCRAM-SHA-256-PLUS', 'SCRAM-SHA-256']));
        const body = await peer.expect('p');
        const initial = decodeSASLInitialResponse(body, 0, body.length);
        first = `${initial.mechanism} ${initial.data}`;
        const nonce = /r=(.*)$/.exec(first)![1];
        peer.send(encode.encodeAuthenticationSASLContinue(`r=${nonce}server,s=c2FsdA==,i=1`));
        final = (await peer.expect('p')).toString();
        peer.send(encode.encodeErrorResponse({ code: '28P01', message: 'enough seen' }));
      },
      { tls: { mode: 'prefer', caCertificate: null } },
    );
    expect(error.message).toBe('enough seen');
    expect(first).toMatch(/^SCRAM-SHA-256-PLUS p=tls-server-end-point,,n=,r=/);
    const binding = Buffer.concat([
      Buffer.from('p=tls-server-end-point,,'),
      createHash('sha256').update(selfSigned.der).digest(),
    ]);
    expect(/^c=([^,]*),/.exec(final)![1]).toBe(binding.toString('base64'));
  });
});

describe('hostile servers', () => {
  const message = (type: string, length: number, body = ''): Buffer => {
    const header = Buffer.from(`${type}0000`);
    header.writeInt32BE(length, 1);
    return Buffer.concat([header, Buffer.from(body)]);
  };
  const ok = encode.encodeAuthenticationOk();

  const BYTES: [string, Buffer][] = [
    ['a length of 0', message('R', 0)],
    ['a length of 3', message('R', 3)],
    ['a negative length', message('R', -1)],
    ['a length of 2 GiB', message('R', 0x7fff_ffff)],
    ['a length one past the limit', message('N', LOGIN_MESSAGE_BYTES_MAX)],
    ['a notice’s place taken by HTTP', Buffer.from('HTTP/1.1 400 Bad Request\r\n\r\n')],
    ['a row before authentication', encode.encodeDataRow(['x'])],
    ['ReadyForQuery before authentication', encode.encodeReadyForQuery(TxStatus.Idle)],
    ['an error whose text has no NUL', message('E', 9, 'Mtext')],
    ['an authentication request without a code', message('R', 6, 'ab')],
    ['a parameter without a NUL', Buffer.concat([ok, message('S', 8, 'name')])],
    ['a secret key of 3 bytes', Buffer.concat([ok, message('K', 11, '1234abc')])],
    ['an unknown transaction status', Buffer.concat([ok, message('Z', 5, 'X')])],
    ['an open transaction', Buffer.concat([ok, encode.encodeReadyForQuery(TxStatus.InTransaction)])],
    ['a second AuthenticationOk', Buffer.concat([ok, ok])],
    ['a COPY', Buffer.concat([ok, message('G', 7, '\0\0\0')])],
    ['a downgrade that nobody asked for', encode.encodeNegotiateProtocolVersion(0x30000, [])],
  ];
  test.each(BYTES)('%s is a protocol error', async (_name, bytes) => {
    const error = await failure(async (peer) => {
      await peer.readStartup();
      peer.send(bytes);
    });
    expect(error).toMatchObject({ kind: 'protocol', code: '08P01', fromServer: false });
  });

  test('a message at the limit is read', async () => {
    const text = 'x'.repeat(
      LOGIN_MESSAGE_BYTES_MAX - 5 - Buffer.byteLength('SNOTICE\0VNOTICE\0C01000\0M\0\0'),
    );
    const notice = encode.encodeNotice({ code: '01000', message: text });
    expect(notice.length).toBe(LOGIN_MESSAGE_BYTES_MAX);
    await login(async (peer) => {
      await peer.readStartup();
      peer.send(notice);
      peer.sendLoggedIn();
      await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
    });
  });

  const ENDLESS: [string, Buffer, (index: number) => Buffer][] = [
    ['small notices', Buffer.alloc(0), () => encode.encodeNotice({ code: '01000', message: 'n' })],
    [
      'large notices',
      Buffer.alloc(0),
      () => encode.encodeNotice({ code: '01000', message: 'n'.repeat(60_000) }),
    ],
    ['parameters', ok, (index) => encode.encodeParameterStatus(`name${index}`, 'v')],
    ['keys', ok, () => encode.encodeBackendKeyData(1, Buffer.from('abcd'))],
  ];
  test.each(
    ENDLESS,
  )('endless %s end the login after a bounded number of bytes', async (_name, head, make) => {
    let sentBytes = 0;
    const error = await failure(async (peer) => {
      await peer.readStartup();
      peer.send(head);
      let left = false;
      peer.socket.once('close', () => {
        left = true;
      });
      for (let index = 0; !left; index++) {
        const bytes = make(index);
        sentBytes += bytes.length;
        if (!peer.socket.write(bytes) || index % 256 === 0)
          await new Promise((resolve) => setImmediate(resolve));
      }
    });
    expect(error.kind).toBe('protocol');
    expect(sentBytes).toBeGreaterThan(0);
  });

  test('endless rows in place of an identity end the login', async () => {
    const row = encode.encodeDataRow(['alice', 'alice', 'alice', 'f', 'f', 'f', 'f', 't', null, 'f', 'f']);
    const error = await failure(async (peer) => {
      await peer.readStartup();
      peer.sendLoggedIn();
      await peer.readRequest();
      peer.send(encode.PARSE_COMPLETE, encode.BIND_COMPLETE, ...new Array<Buffer>(100).fill(row));
    });
    expect(error.kind).toBe('protocol');
  });

  test('random bytes end in an error or in a refusal, never in a crash', async () => {
    const seed = Math.floor(Math.random() * 2 ** 31);
    let state = seed;
    const next = (): number => {
      state = (Math.imul(state, 1103515245) + 12345) >>> 0;
      return state >>> 8;
    };
    const server = await ScriptedServer.listen(async (peer) => {
      await peer.readStartup();
      const types = 'RSKZENvTD1';
      for (let count = next() % 6; count >= 0; count--) {
        const body = Buffer.from(Array.from({ length: next() % 20 }, () => next() % (next() % 2 ? 256 : 12)));
        peer.send(message(types[next() % types.length]!, 4 + body.length), body);
      }
      peer.end();
      await peer.untilClosed();
    });
    onTestFinished(() => server.finished());
    for (let round = 0; round < 200; round++) {
      const outcome = await openServerConnection(targetAt(server.port), { scramKeys }).catch(
        (error) => error,
      );
      expect(outcome, `seed ${seed}, round ${round}`).toBeInstanceOf(ServerLoginError);
    }
  });
});

describe('servers that are away', () => {
  test('a closed port is unreachable, and a client is not told where it is', async () => {
    const server = await ScriptedServer.listen(async () => {});
    const { port } = server;
    await server.close();
    const error = await openServerConnection(targetAt(port), { scramKeys }).catch((caught) => caught);
    expect(error).toMatchObject({ kind: 'unreachable', code: '08006' });
    expect(error.message).toContain(`port ${port}`);
    expect(error.toPgError().message).toBe('could not connect to the database server');
  });

  test('a missing Unix socket is unreachable', async () => {
    const target = targetAt(5432, { host: '/nonexistent/directory' });
    await expect(openServerConnection(target, { scramKeys })).rejects.toMatchObject({ kind: 'unreachable' });
  });

  test('a Unix path that is too long is unreachable', async () => {
    const target = targetAt(5432, { host: `/${'x'.repeat(300)}` });
    await expect(openServerConnection(target, { scramKeys })).rejects.toMatchObject({ kind: 'unreachable' });
  });

  test.each<[string, Script]>([
    ['closes at once', async (peer) => peer.end()],
    [
      'breaks after the startup packet',
      async (peer) => {
        await peer.readStartup();
        peer.reset();
      },
    ],
    [
      'closes in the middle of a message',
      async (peer) => {
        await peer.readStartup();
        peer.send(encode.encodeAuthenticationOk().subarray(0, 7));
        peer.end();
      },
    ],
    [
      'closes instead of saying who we are',
      async (peer) => {
        await peer.readStartup();
        peer.sendLoggedIn();
        await peer.readRequest();
        peer.end();
      },
    ],
  ])('a server that %s is unreachable', async (_name, script) => {
    expect((await failure(script)).kind).toBe('unreachable');
  });

  test('an error that comes together with the end of the connection is still told', async () => {
    const error = await failure(async (peer) => {
      await peer.readStartup();
      peer.send(
        encode.encodeNotice({ code: '01000', message: 'soon' }),
        encode.encodeErrorResponse({ code: '53300', message: 'sorry, too many clients already' }),
      );
      peer.end();
    });
    expect(error).toMatchObject({ kind: 'refused', code: '53300', fromServer: true });
  });

  const SILENT: [string, Script, Partial<ServerTarget>][] = [
    ['says nothing', async () => {}, {}],
    ['does not answer SSLRequest', async () => {}, { tls: { mode: 'prefer', caCertificate: null } }],
    [
      'does not shake hands',
      async (peer) => peer.answerSslRequest('S'),
      { tls: { mode: 'prefer', caCertificate: null } },
    ],
    [
      'stops after authentication',
      async (peer) => {
        await peer.readStartup();
        peer.send(encode.encodeAuthenticationOk());
      },
      {},
    ],
    [
      'does not say who we are',
      async (peer) => {
        await peer.readStartup();
        peer.sendLoggedIn();
      },
      {},
    ],
  ];
  test.each(
    SILENT,
  )('a server that %s runs into the deadline and loses its socket', async (_name, script, change) => {
    const startedMs = performance.now();
    const error = await failure(script, { connectTimeoutMs: 120, ...change });
    expect(error).toMatchObject({ kind: 'timeout', code: '08006' });
    expect(performance.now() - startedMs).toBeGreaterThan(100);
  });

  test('a server that drips notices does not move the deadline', async () => {
    const error = await failure(
      async (peer) => {
        await peer.readStartup();
        const notice = encode.encodeNotice({ code: '01000', message: 'wait' });
        const timer = setInterval(() => peer.send(notice), 10);
        peer.socket.once('close', () => clearInterval(timer));
      },
      { connectTimeoutMs: 150 },
    );
    expect(error.kind).toBe('timeout');
  });

  test('a mistake of ours leaves no open socket behind', async () => {
    const server = await ScriptedServer.listen((peer) => peer.untilClosed());
    onTestFinished(() => server.finished());
    const target = targetAt(server.port, { startupParameters: { '': 'x' } });
    await expect(openServerConnection(target, { scramKeys })).rejects.toThrow(AssertionError);
  });

  test.each([
    Number.POSITIVE_INFINITY,
    2 ** 31,
  ])('a deadline of %d ms does not fire at once', async (timeoutMs) => {
    const opened = await login(
      async (peer) => {
        await peer.readStartup();
        await new Promise((resolve) => setTimeout(resolve, 30));
        peer.sendLoggedIn();
        await peer.answerIdentity('alice', 'alice', [{ name: 'alice' }]);
      },
      { connectTimeoutMs: timeoutMs },
    );
    expect(opened.sessionUser).toBe('alice');
  });

  test('a login that is given up ends at once, before and while it waits', async () => {
    const server = await ScriptedServer.listen((peer) => peer.untilClosed());
    onTestFinished(() => server.close());
    const controller = new AbortController();
    const waiting = openServerConnection(targetAt(server.port), { scramKeys, signal: controller.signal });
    controller.abort();
    await expect(waiting).rejects.toMatchObject({ kind: 'unreachable' });
    const late = openServerConnection(targetAt(server.port), { scramKeys, signal: controller.signal });
    await expect(late).rejects.toMatchObject({ kind: 'unreachable' });
  });
});
