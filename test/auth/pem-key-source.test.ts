/** The public key file: what is taken for a key, and what happens when the file changes under a running pooler. */
import { generateKeyPairSync } from 'node:crypto';
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { algorithmsOfKey } from '../../src/auth/key-source.ts';
import { decodePublicKeyPem, PemKeySource } from '../../src/auth/pem-key-source.ts';
import { KeyFileFault } from '../../src/auth/watched-file.ts';
import { ed25519, otherRsa, p256, rsa, toPem, toPrivatePem } from './support.ts';

const pem = toPem(rsa.publicKey);

describe('what is taken for a key', () => {
  test.each([
    ['RSA as SubjectPublicKeyInfo', pem, 'RS256'],
    ['RSA as PKCS #1', rsa.publicKey.export({ type: 'pkcs1', format: 'pem' }).toString(), 'RS256'],
    ['P-256', toPem(p256.publicKey), 'ES256'],
    ['Ed25519', toPem(ed25519.publicKey), 'EdDSA'],
    ['a key with text around it', `# my key\n${pem}\n# end\n`, 'RS256'],
    ['a key with CRLF', pem.replaceAll('\n', '\r\n'), 'RS256'],
  ])('%s', (_what, text, algorithm) => {
    expect(algorithmsOfKey(decodePublicKeyPem(text))[0]).toBe(algorithm);
  });

  const small = generateKeyPairSync('rsa', { modulusLength: 1024 }).publicKey;
  test.each([
    ['an empty file', '', /no PEM public key/],
    ['a private key', toPrivatePem(rsa.privateKey), /private key/],
    ['a private key behind a public one', pem + toPrivatePem(rsa.privateKey), /private key/],
    ['an old private key', rsa.privateKey.export({ type: 'pkcs1', format: 'pem' }).toString(), /private key/],
    ['a certificate', '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----', /certificate/],
    ['two keys', pem + toPem(otherRsa.publicKey), /more than one/],
    ['half a key', pem.slice(0, pem.length / 2), /no whole/],
    ['a key with a hole', pem.replace(/\n.{10}/, '\n'), /cannot be decoded/],
    ['base64 of nothing', '-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----', /cannot be decoded/],
    ['RSA of 1024 bits', toPem(small), /1024 bits/],
    ['an odd curve', toPem(generateKeyPairSync('ec', { namedCurve: 'secp256k1' }).publicKey), /curve/],
    ['Ed448', toPem(generateKeyPairSync('ed448').publicKey), /unsupported kind/],
  ])('%s is refused with a sentence that does not quote the file', (_what, text, fault) => {
    let message = '';
    try {
      decodePublicKeyPem(text);
    } catch (error) {
      expect(error).toBeInstanceOf(KeyFileFault);
      message = (error as Error).message;
    }
    expect(message).toMatch(fault);
    expect(message).not.toMatch(/BEGIN|AAAA|MI[IG]/);
  });
});

describe('the file under a running pooler', () => {
  let directory: string;
  let path: string;
  let nowMs = 0;
  let faults: string[] = [];
  let reloads: string[] = [];

  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'turnstile-pem-'));
    path = join(directory, 'key.pem');
    await writeFile(path, pem);
    nowMs = 0;
    faults = [];
    reloads = [];
  });
  afterEach(() => rm(directory, { recursive: true }));

  const openSource = (): Promise<PemKeySource> =>
    PemKeySource.open({
      path,
      clock: () => nowMs,
      onFault: (message) => faults.push(message),
      onReload: (description) => reloads.push(description),
    });
  const kindOf = async (source: PemKeySource): Promise<string | undefined> =>
    (await source.keyFor()).key.asymmetricKeyType;

  test('a replaced file is the new key at the next look, a second later', async () => {
    const source = await openSource();
    await writeFile(`${path}.new`, toPem(p256.publicKey));
    await rename(`${path}.new`, path);
    nowMs = 999;
    expect(await kindOf(source)).toBe('rsa');
    nowMs = 1_000;
    const kinds = await Promise.all(Array.from({ length: 10 }, () => kindOf(source)));
    expect(new Set(kinds)).toEqual(new Set(['ec']));
    expect(reloads).toEqual(['EC prime256v1 from the public key file']);
  });

  test('a partial write keeps the old key, is told once, and the finished one is taken', async () => {
    const source = await openSource();
    const whole = toPem(ed25519.publicKey);
    await writeFile(path, whole.slice(0, 40));
    for (nowMs = 1_000; nowMs < 6_000; nowMs += 1_000) expect(await kindOf(source)).toBe('rsa');
    expect(faults).toEqual(['the file holds no whole PEM public key']);
    await writeFile(path, whole);
    expect(await kindOf(source)).toBe('ed25519');
  });

  test('a file that is gone or becomes a private key keeps the old key', async () => {
    const source = await openSource();
    await rm(path);
    nowMs = 1_000;
    expect(await kindOf(source)).toBe('rsa');
    await writeFile(path, toPrivatePem(p256.privateKey));
    nowMs = 2_000;
    expect(await kindOf(source)).toBe('rsa');
    expect(faults).toEqual([
      'the public key file cannot be read (ENOENT)',
      'the file holds a private key; give the public one (openssl pkey -pubout)',
    ]);
  });

  test('a missing file, a directory and an endless file are faults at the start', async () => {
    const open = (at: string): Promise<PemKeySource> => PemKeySource.open({ path: at });
    await expect(open(join(directory, 'none'))).rejects.toThrow('cannot be read (ENOENT)');
    await expect(open(directory)).rejects.toThrow('not a file');
    await expect(open('/dev/zero')).rejects.toThrow('not a file');
    await writeFile(path, pem.padEnd(65_537));
    await expect(open(path)).rejects.toThrow('longer than 64 KiB');
    await writeFile(path, pem.padEnd(65_536));
    await expect(open(path)).resolves.toBeInstanceOf(PemKeySource);
  });
});
