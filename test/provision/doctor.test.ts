/** What `pgturnstile doctor` says from the configuration alone, with no PostgreSQL to look at. */

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ScramKeys } from '../../src/auth/scram-keys.ts';
import { loadConfig } from '../../src/config/load.ts';
import { runDoctor } from '../../src/provision/doctor.ts';
import type { DoctorReport } from '../../src/provision/doctor-report.ts';

let directory: string;
beforeAll(() => {
  directory = mkdtempSync(path.join(tmpdir(), 'pgturnstile-doctor-'));
});
afterAll(() => rmSync(directory, { recursive: true, force: true }));

const ISSUER = '[[turnstile.issuers]]\nissuer = "https://id.example.com"\ndiscovery = true\n';
const DATABASES = ['app', 'logs'].map(
  (name) => `[[databases]]\nname = "${name}"\nhost = "127.0.0.1"\nport = 1\n`,
);
const own = (name: string): string =>
  `[[turnstile.databases]]\nname = "${name}"\naudiences = ["${name}-db"]\n`;

/** Roles log in as themselves and nobody is named: no connection is made. */
function examine(rows: string): Promise<DoctorReport> {
  const configPath = path.join(directory, 'pgdog.toml');
  const usersPath = path.join(directory, 'users.toml');
  const head =
    '[general]\nauth_type = "jwt"\njwt_user_auto_provision = true\n[turnstile]\nbackend_identity = "login_password"\nbackend_password_key = "0123456789abcdef0123456789abcdef"\n';
  writeFileSync(configPath, `${head}${rows}${DATABASES.join('')}`);
  writeFileSync(usersPath, '');
  const { config, faults } = loadConfig({ configPath, usersPath, env: {} });
  if (config === null) throw new Error(JSON.stringify(faults));
  return runDoctor({ config, database: null, roles: [], scramKeys: new ScramKeys() });
}

describe('audiences', () => {
  const texts = async (rows: string): Promise<string> => (await examine(rows)).lines().join('\n');

  it('an issuer without audiences is wrong', async () => {
    expect(await texts(ISSUER)).toContain('any audience is taken from https://id.example.com');
  });

  it('one database with audiences of its own does not speak for the others', async () => {
    expect(await texts(ISSUER + own('app'))).toContain('any audience is taken from https://id.example.com');
  });

  it('they may be the databases’ own, as check has it', async () => {
    const text = await texts(ISSUER + own('app') + own('logs'));
    expect(text).not.toContain('any audience');
    expect(text).toContain('tokens are taken from named issuers, for named audiences');
  });
});

describe('a database where no login was tried', () => {
  it('is wrong, not healthy: nothing was looked at', async () => {
    const report = await examine(ISSUER + own('app') + own('logs'));
    expect(report.healthy).toBe(false);
    const text = report.lines().join('\n');
    expect(text).toContain('no role was tried by login_password, and so nothing was looked at in PostgreSQL');
    expect(text).toContain('fix: name one: pgturnstile doctor --role <role>');
    expect(text).not.toContain('nothing is wrong');
  });
});
