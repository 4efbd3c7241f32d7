import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import tls from 'node:tls';
import { afterAll, describe, expect, test } from 'vitest';
import {
  type PeerCertificate,
  peerCertificateOf,
  readAlternativeNames,
} from '../../src/net/peer-certificate.ts';
import { ServerCertificate } from '../../src/net/tls.ts';
import { generalName, makeCertificate, type TestCertificate } from '../support/certificates.ts';

const directory = mkdtempSync(join(tmpdir(), 'pgturnstile-peer-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const authority = makeCertificate({ name: 'clients-ca', authority: true });
const server = makeCertificate({ name: 'localhost' });
const write = (name: string, text: string): string => {
  const path = join(directory, name);
  writeFileSync(path, text);
  return path;
};
const certificatePath = write('server.crt', server.cert);
const keyPath = write('server.key', server.key);
const identity = ServerCertificate.load(certificatePath, keyPath, write('ca.crt', authority.cert));

/** What the server makes of a client that shows this certificate. */
async function seen(
  client: TestCertificate | null,
  version: 'TLSv1.2' | 'TLSv1.3' = 'TLSv1.3',
): Promise<PeerCertificate | null> {
  const listener = net.createServer();
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  const accepted = once(listener, 'connection');
  const socket = tls.connect({
    host: '127.0.0.1',
    port: (listener.address() as net.AddressInfo).port,
    rejectUnauthorized: false,
    minVersion: version,
    maxVersion: version,
    ...(client !== null && { cert: client.cert, key: client.key }),
  });
  socket.on('error', () => {});
  const [plain] = (await accepted) as [net.Socket];
  const secure = identity.accept(plain);
  secure.on('error', () => {});
  await once(secure, 'secure');
  const peer = peerCertificateOf(secure);
  socket.destroy();
  secure.destroy();
  listener.close();
  return peer;
}

describe('a client’s certificate', () => {
  test.each(['TLSv1.2', 'TLSv1.3'] as const)('of our authority is verified (%s)', async (version) => {
    const client = makeCertificate({ name: 'billing.example.com', issuer: authority });
    expect(await seen(client, version)).toEqual({
      verified: true,
      commonName: 'billing.example.com',
      alternativeNames: ['billing.example.com'],
      thumbprint: createHash('sha256').update(client.der).digest('base64url'),
    });
  });

  test('need not be shown', async () => {
    expect(await seen(null)).toBeNull();
  });

  test.each([
    [
      'of a stranger’s authority',
      makeCertificate({ name: 'x', issuer: makeCertificate({ name: 'clients-ca', authority: true }) }),
    ],
    ['signed by itself', makeCertificate({ name: 'x' })],
    ['that has expired', makeCertificate({ name: 'x', issuer: authority, lifetimeSeconds: -60 })],
    [
      'of an authority that is none',
      makeCertificate({ name: 'x', issuer: makeCertificate({ name: 'leaf', issuer: authority }) }),
    ],
  ])('%s is there and not verified', async (_name, client) => {
    expect(await seen(client)).toMatchObject({ verified: false, commonName: 'x' });
  });

  test('shows names of three kinds, and an odd one as the one that it is', async () => {
    const client = makeCertificate({
      name: 'a, CN=b\nCN=c',
      issuer: authority,
      alternativeNames: [
        generalName('dns', 'a.example.com, DNS:victim.example.com'),
        generalName('email', 'svc@example.com'),
        generalName('uri', 'spiffe://example.com/a,b'),
        generalName('dns', 'quo"te\\'),
        generalName('dns', 'nul.example.com\0.evil.com'),
      ],
    });
    const peer = await seen(client);
    expect(peer?.commonName).toBe('a, CN=b\nCN=c');
    expect(peer?.alternativeNames).toEqual([
      'a.example.com, DNS:victim.example.com',
      'svc@example.com',
      'spiffe://example.com/a,b',
      'quo"te\\',
      'nul.example.com\0.evil.com',
    ]);
  });
});

describe('the text of alternative names', () => {
  test.each([
    ['', []],
    ['DNS:a', ['a']],
    ['DNS:a, email:b@c, URI:d:e, IP Address:1.2.3.4, othername:<unsupported>', ['a', 'b@c', 'd:e']],
    ['DNS:"a, DNS:b"', ['a, DNS:b']],
    ['DNS:"a", DNS:b', ['a', 'b']],
    ['DNS:"a\\u0000b"', ['a\0b']],
    ['DNS:', []],
    ['DNS:a, DNS:"b', []],
    ['DNS:a,DNS:b', []],
    ['DNS:a, garbage', []],
    ['DNS:"\\x"', []],
  ])('%j holds %j', (text, names) => {
    expect(readAlternativeNames(text)).toEqual(names);
  });
});

test('a file without a certificate is a fault that names the key', () => {
  const path = write('empty.crt', 'nothing here\n');
  expect(() => ServerCertificate.load(certificatePath, keyPath, path)).toThrow(
    /tls_client_ca_certificate ".*empty\.crt" holds no certificate/,
  );
  expect(() => ServerCertificate.load(certificatePath, keyPath, join(directory, 'none'))).toThrow(
    /tls_client_ca_certificate ".*none" cannot be read/,
  );
});
