import type { Socket } from 'node:net';
import { Duplex } from 'node:stream';
import tls from 'node:tls';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { ServerCertificate } from '../../src/net/tls.ts';
import { encodeCancelRequest, encodeStartup, SSL_REQUEST } from '../../src/protocol/message-writer.ts';
import { PgError } from '../../src/protocol/pg-error.ts';
import { ScriptedClient } from '../support/scripted-client.ts';
import { CertificateFiles, fakeToken, TestListener, type TestListenerOptions, until } from './support.ts';

let pooler: TestListener;
afterEach(() => pooler?.close());

async function start(options: TestListenerOptions = {}): Promise<TestListener> {
  pooler = await TestListener.start({ tls: true, ...options });
  return pooler;
}

const direct = (options?: tls.ConnectionOptions): Promise<ScriptedClient> =>
  ScriptedClient.connectDirectTls({ port: pooler.port }, options);
const alice = { user: 'alice', database: 'app', password: fakeToken('role:alice') };

describe('SSLRequest', () => {
  test('is answered S and the whole login runs inside TLS', async () => {
    await start({ turnstile: { allowPlaintextTokens: 'never' }, general: { tlsClientRequired: true } });
    const client = await pooler.connect();
    await client.requestTls();
    await client.login(alice);
    expect(pooler.target.results[0]).toMatchObject({ tlsInUse: true, identity: { role: 'alice' } });
    expect(pooler.loudLines).toEqual([]);
    client.destroy();
  });

  test('works byte by byte, and with TLS 1.2', async () => {
    await start();
    const client = await pooler.connect();
    await client.sendInPieces(SSL_REQUEST);
    expect((await client.readBytes(1)).toString()).toBe('S');
    await client.startTls({ maxVersion: 'TLSv1.2' });
    expect((client.socket as tls.TLSSocket).getProtocol()).toBe('TLSv1.2');
    await client.sendInPieces(encodeStartup({ user: 'alice', database: 'app' }));
    await client.authenticate('alice', fakeToken('role:alice'));
    client.destroy();
  });

  test('is answered N without a certificate, and the login may go on in the clear', async () => {
    await start({ tls: false });
    const client = await pooler.connect();
    client.sendSslRequest();
    expect((await client.readBytes(1)).toString()).toBe('N');
    await client.login(alice);
    expect(pooler.target.results[0]?.tlsInUse).toBe(false);
  });

  test.each([
    true,
    false,
  ])('with bytes behind it gets an error and no answer (CVE-2021-23214), certificate: %s', async (withTls) => {
    await start({ tls: withTls });
    const client = await pooler.connect();
    client.send(SSL_REQUEST, encodeStartup({ user: 'alice', database: 'app' }));
    expect((await client.expectFatal()).code).toBe('08P01');
    expect(pooler.target.results).toEqual([]);
  });

  test.each([true, false])('is refused the second time, inside TLS: %s', async (withTls) => {
    await start({ tls: withTls });
    const client = await pooler.connect();
    if (withTls) {
      await client.requestTls();
    } else {
      client.sendSslRequest();
      await client.readBytes(1);
    }
    client.sendSslRequest();
    expect((await client.expectFatal()).code).toBe('08P01');
  });

  test('may offer the right ALPN protocol; a wrong one ends the handshake', async () => {
    await start();
    const client = await pooler.connect();
    await client.requestTls({ ALPNProtocols: ['postgresql'] });
    expect((client.socket as tls.TLSSocket).alpnProtocol).toBe('postgresql');
    client.destroy();
    const stranger = await pooler.connect();
    await expect(stranger.requestTls({ ALPNProtocols: ['h2'] })).rejects.toThrow(/ended before the TLS/);
  });

  test('followed by plain text instead of a handshake ends the connection and the login', async () => {
    await start();
    const client = await pooler.connect();
    client.sendSslRequest();
    expect((await client.readBytes(1)).toString()).toBe('S');
    client.sendStartup({ user: 'alice', database: 'app' });
    await client.readToEnd();
    await until(() => pooler.listener.loginCount === 0, 'the end of the login');
    expect(pooler.target.results).toEqual([]);
    expect(pooler.loudLines).toEqual([
      { level: 'info', event: 'login_refused', fields: expect.objectContaining({ reason: 'tls_handshake' }) },
    ]);
  });

  test.each([
    'TLSv1.2',
    'TLSv1.3',
  ] as const)('takes a startup packet that comes in one flight with the end of a %s handshake', async (version) => {
    await start();
    const client = await pooler.connect();
    client.sendSslRequest();
    expect((await client.readBytes(1)).toString()).toBe('S');
    const secured = client.startTls({ minVersion: version, maxVersion: version });
    client.sendStartup({ user: 'alice', database: 'app' });
    await secured;
    await client.authenticate('alice', fakeToken('role:alice'));
    client.destroy();
  });

  test('a client that goes away in the handshake leaves nothing behind', async () => {
    await start();
    const client = await pooler.connect();
    client.sendSslRequest();
    await client.readBytes(1);
    client.destroy();
    await until(() => pooler.listener.loginCount === 0, 'the end of the login');
    expect(pooler.loudLines).toEqual([]);
  });
});

describe('GSSENCRequest', () => {
  test('is answered N, then SSLRequest and a login work', async () => {
    await start();
    const client = await pooler.connect();
    client.sendGssencRequest();
    expect((await client.readBytes(1)).toString()).toBe('N');
    await client.requestTls();
    await client.login(alice);
    client.destroy();
  });

  test('is answered N behind a refused SSLRequest, and refused the second time', async () => {
    await start({ tls: false });
    const client = await pooler.connect();
    client.sendSslRequest();
    client.socket.once('data', () => client.sendGssencRequest());
    expect((await client.readBytes(2)).toString()).toBe('NN');
    client.sendGssencRequest();
    expect((await client.expectFatal()).code).toBe('08P01');
  });

  test('inside TLS is refused', async () => {
    await start();
    const client = await pooler.connect();
    await client.requestTls();
    client.sendGssencRequest();
    expect((await client.expectFatal()).code).toBe('08P01');
  });
});

describe('direct TLS', () => {
  test('with ALPN postgresql logs in', async () => {
    await start();
    const client = await direct();
    await client.login(alice);
    expect(pooler.target.results[0]).toMatchObject({ tlsInUse: true });
    client.destroy();
  });

  test('without ALPN is told why, inside TLS', async () => {
    await start();
    const client = await direct({});
    expect(await client.expectFatal()).toMatchObject({
      code: '08P01',
      message: 'direct TLS connections must negotiate the ALPN protocol "postgresql"',
    });
    expect(pooler.loudLines[0]?.fields).toMatchObject({ reason: 'alpn_missing' });
  });

  test('with another ALPN protocol fails in the handshake', async () => {
    await start();
    await expect(direct({ ALPNProtocols: ['http/1.1'] })).rejects.toThrow(/ended before the TLS/);
    await until(() => pooler.listener.loginCount === 0, 'the end of the login');
  });

  test('without a certificate is refused by an alert that TLS clients can read', async () => {
    await start({ tls: false });
    await expect(direct()).rejects.toThrow(/handshake failure/);
    expect(pooler.loudLines[0]?.fields).toMatchObject({ reason: 'direct_tls_not_configured' });
    expect(pooler.listener.loginCount).toBe(0);
  });

  test('an SSLRequest inside it is refused', async () => {
    await start();
    const client = await direct();
    client.sendSslRequest();
    expect((await client.expectFatal()).code).toBe('08P01');
  });

  test('a client hello that comes byte by byte works', async () => {
    await start();
    const client = await pooler.connect();
    const secure = tls.connect({
      socket: new Trickle(client.socket) as unknown as Socket,
      rejectUnauthorized: false,
      ALPNProtocols: ['postgresql'],
    });
    const received: Buffer[] = [];
    secure.on('data', (chunk: Buffer) => received.push(chunk));
    await new Promise((resolve, reject) => {
      secure.once('secureConnect', resolve);
      secure.once('error', reject);
    });
    secure.write(encodeStartup({ user: 'alice', database: 'app' }));
    await until(() => Buffer.concat(received).length >= 9, 'the authentication request');
    expect(Buffer.concat(received).toString('hex')).toBe('520000000800000003');
    secure.destroy();
  });
});

describe('tls_client_required', () => {
  test.each([
    'jwt',
    'scram',
    'md5',
    'plain',
    'trust',
  ] as const)('refuses a plain %s login before anything is asked, the console too', async (authType) => {
    await start({ general: { authType, tlsClientRequired: true } });
    for (const database of ['app', 'admin']) {
      const client = await pooler.connectAs('alice', database);
      expect(await client.expectFatal()).toMatchObject({
        severity: 'FATAL',
        code: '28000',
        message: 'SSL connection is required',
      });
    }
  });

  test('lets plain cancel requests pass: old clients send no others', async () => {
    await start({ general: { tlsClientRequired: true } });
    const client = await pooler.connect();
    client.sendCancelRequest(5, Buffer.alloc(4));
    await client.readToEnd();
    expect(pooler.target.cancels).toHaveLength(1);
  });
});

test.each(['SSLRequest', 'direct TLS'])('a cancel request inside TLS by %s works', async (way) => {
  await start();
  const client = way === 'direct TLS' ? await direct() : await pooler.connect();
  if (way === 'SSLRequest') await client.requestTls();
  await client.sendInPieces(encodeCancelRequest(9, Buffer.alloc(256, 1)));
  expect(await client.readToEnd()).toHaveLength(0);
  expect(pooler.target.cancels).toEqual([{ processId: 9, secret: Buffer.alloc(256, 1) }]);
});

describe('the certificate', () => {
  const files = new CertificateFiles('first.example');
  afterEach(() => files.write('first.example'));
  afterAll(() => files.remove());

  test('a reload serves the new one to the next connection, and the old one goes on', async () => {
    await start();
    const name = (client: ScriptedClient): string =>
      String((client.socket as tls.TLSSocket).getPeerCertificate().subject.CN);
    const certificate = pooler.context.certificate as ServerCertificate;
    certificate.reload(files.certificatePath, files.keyPath);
    const before = await direct();
    files.write('second.example');
    certificate.reload(files.certificatePath, files.keyPath);
    const after = await direct();
    expect([name(before), name(after)]).toEqual(['first.example', 'second.example']);
    await before.login(alice);
    before.destroy();
    after.destroy();
  });

  test('files that do not fit are a fault that names them, and a reload keeps what it had', () => {
    const other = new CertificateFiles();
    try {
      const certificate = files.load();
      const attempts: [string, string, RegExp][] = [
        [files.certificatePath, other.keyPath, /do not make a TLS identity/],
        [`${files.directory}/none`, files.keyPath, /tls_certificate ".*none" cannot be read/],
        [files.certificatePath, `${files.directory}/none`, /tls_private_key ".*none" cannot be read/],
        [files.keyPath, files.keyPath, /do not make a TLS identity/],
      ];
      for (const [cert, key, words] of attempts) {
        expect(() => certificate.reload(cert, key)).toThrow(words);
        expect(() => ServerCertificate.load(cert, key)).toThrow(PgError);
      }
    } finally {
      other.remove();
    }
  });

  test('TLS 1.1 is not spoken', async () => {
    await start();
    const old = direct({
      ALPNProtocols: ['postgresql'],
      minVersion: 'TLSv1',
      maxVersion: 'TLSv1.1',
      ciphers: 'DEFAULT@SECLEVEL=0',
    });
    await expect(old).rejects.toThrow(/protocol version|ended before the TLS/);
  });
});

/** Passes bytes on to a socket one by one. */
class Trickle extends Duplex {
  readonly #socket: Socket;

  constructor(socket: Socket) {
    super();
    this.#socket = socket;
    socket.removeAllListeners('data');
    socket.on('data', (chunk) => this.push(chunk));
    socket.on('close', () => this.push(null));
  }

  override _read(): void {}

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error) => void): void {
    const next = (at: number): void => {
      if (at === chunk.length) {
        done();
        return;
      }
      this.#socket.write(chunk.subarray(at, at + 1));
      setImmediate(() => next(at + 1));
    };
    next(0);
  }
}
