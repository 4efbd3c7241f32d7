/** What docker-compose.yml mounts, without Docker: the key script, the configuration, the pair of token and key. */
import { spawnSync } from 'node:child_process';
import { X509Certificate } from 'node:crypto';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { importSPKI, jwtVerify } from 'jose';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { mintToken } from '../../src/auth/token-mint.ts';
import { formatFault } from '../../src/config/faults.ts';
import { loadConfig } from '../../src/config/load.ts';

const DEPLOY = fileURLToPath(new URL('../../deploy/compose/', import.meta.url));
const hasOpenssl = spawnSync('openssl', ['version']).status === 0;

describe.runIf(hasOpenssl)('the files of docker-compose.yml', () => {
  let place: string;

  beforeAll(() => {
    place = mkdtempSync(join(tmpdir(), 'pgturnstile-test-'));
    for (const name of ['database', 'pooler', 'issuer']) mkdirSync(join(place, name));
    makeKeys();
  });

  afterAll(() => {
    rmSync(place, { recursive: true, force: true });
  });

  function makeKeys(): void {
    const { status, stderr } = spawnSync('/bin/sh', [join(DEPLOY, 'keys.sh'), place], { encoding: 'utf8' });
    expect(stderr.replaceAll(/[.+*-]/g, '').trim()).toBe('');
    expect(status).toBe(0);
  }

  const read = (name: string): string => readFileSync(join(place, name), 'utf8');

  it('the key script makes everything once and closes it to others', () => {
    const names = ['database', 'issuer', 'pooler'].flatMap((name) =>
      readdirSync(join(place, name)).map((file) => `${name}/${file}`),
    );
    expect(names).toEqual([
      'database/superuser-password',
      'database/turnstile-password',
      'issuer/private.pem',
      'pooler/public.pem',
      'pooler/tls.crt',
      'pooler/tls.key',
      'pooler/turnstile-password',
    ]);
    expect(names.filter((name) => (statSync(join(place, name)).mode & 0o077) !== 0)).toEqual([]);
    expect(read('database/turnstile-password')).toBe(read('pooler/turnstile-password'));
    expect(read('database/superuser-password')).not.toBe(read('database/turnstile-password'));
    expect(new X509Certificate(read('pooler/tls.crt')).checkHost('localhost')).toBe('localhost');
    const before = names.map(read);
    makeKeys();
    expect(names.map(read)).toEqual(before);
  });

  it('the configuration has no fault and no warning, and its password comes from the file', () => {
    const configPath = join(place, 'pgdog.toml');
    const usersPath = join(place, 'users.toml');
    const text = readFileSync(join(DEPLOY, 'pgdog.toml'), 'utf8');
    writeFileSync(configPath, text.replaceAll('"/keys/', `"${place}/pooler/`));
    writeFileSync(usersPath, readFileSync(join(DEPLOY, 'users.toml'), 'utf8'));
    const { config, faults, warnings } = loadConfig({ configPath, usersPath, env: {} });
    expect([...faults, ...warnings].map(formatFault)).toEqual([]);
    expect(config?.jwt.serverPassword?.reveal()).toBe(read('pooler/turnstile-password').trim());
    expect(config?.turnstile.allowPlaintextTokens).toBe('loopback');
  });

  it('a token that the helper mints is verified by the public key that the pooler mounts', async () => {
    const token = await mintToken({
      privateKeyPem: read('issuer/private.pem'),
      subject: 'alice',
      ttlSeconds: 60,
      audience: 'pgturnstile',
      nowMs: Date.now(),
    });
    const { payload } = await jwtVerify(token, await importSPKI(read('pooler/public.pem'), 'ES256'), {
      audience: 'pgturnstile',
    });
    expect(payload.sub).toBe('alice');
  });
});
