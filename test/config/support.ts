/** Loads configurations from texts: a temporary directory, removed at the end of the test file. */
import type { KeyObject } from 'node:crypto';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll, expect, test } from 'vitest';
import type { Config } from '../../src/config/config.ts';
import { formatFault } from '../../src/config/faults.ts';
import { loadConfig } from '../../src/config/load.ts';

const root = mkdtempSync(path.join(tmpdir(), 'pgturnstile-config-'));
let counter = 0;
afterAll(() => rmSync(root, { recursive: true, force: true }));

export interface Given {
  main?: string;
  users?: string;
  env?: Record<string, string>;
  allowedOidcIssuers?: string[];
  authRequired?: boolean;
  files?: Record<string, string>;
  nowMs?: number;
}

export interface Loaded {
  config: Config | null;
  /** `pgdog.toml:1: key: message`, without the directory. */
  faults: string[];
  warnings: string[];
  directory: string;
}

/** A database and a user that are in order, for tests about something else. */
export const DATABASE = '[[databases]]\nname = "app"\nhost = "h"\n';
export const USER = '[[users]]\nname = "alice"\npassword = "pw-of-alice"\ndatabase = "app"\n';

/** Absent files are written as the two above; a null one is not written at all. */
export function load(given: Given & { missing?: ('main' | 'users')[] }): Loaded {
  const directory = path.join(root, `${counter++}`);
  mkdirSync(directory);
  const configPath = path.join(directory, 'pgdog.toml');
  const usersPath = path.join(directory, 'users.toml');
  if (!given.missing?.includes('main')) writeFileSync(configPath, given.main ?? DATABASE);
  if (!given.missing?.includes('users')) writeFileSync(usersPath, given.users ?? USER);
  for (const [name, text] of Object.entries(given.files ?? {}))
    writeFileSync(path.join(directory, name), text);
  const result = loadConfig({
    configPath,
    usersPath,
    env: given.env ?? {},
    ...(given.allowedOidcIssuers && { allowedOidcIssuers: given.allowedOidcIssuers }),
    ...(given.authRequired === undefined ? {} : { authRequired: given.authRequired }),
    ...(given.nowMs === undefined ? {} : { nowMs: given.nowMs }),
  });
  const short = (text: string): string => text.replaceAll(`${directory}/`, '');
  return {
    config: result.config,
    faults: result.faults.map((fault) => short(formatFault(fault))),
    warnings: result.warnings.map((fault) => short(formatFault(fault))),
    directory,
  };
}

/** What a configuration must be told, in order; texts are parts of findings. */
export interface Case extends Given {
  name: string;
  /** Most cases are about something else than the issuer that they do not pin. */
  isAboutIssuer?: boolean;
  faults?: (string | RegExp)[];
  warnings?: (string | RegExp)[];
}

function matcher(expected: string | RegExp): unknown {
  return typeof expected === 'string' ? expect.stringContaining(expected) : expect.stringMatching(expected);
}

/** One test per case: exactly these findings, and a configuration unless there is a fault. */
export function runCases(cases: Case[]): void {
  for (const { name, faults = [], warnings = [], isAboutIssuer = false, ...given } of cases) {
    test(name, () => {
      const loaded = load(given);
      expect(loaded.faults).toEqual(faults.map(matcher));
      const unpinned = 'turnstile.jwt_issuer: is not set: ';
      const shown = loaded.warnings.filter((warning) => isAboutIssuer || !warning.includes(unpinned));
      expect(shown).toEqual(warnings.map(matcher));
      expect(loaded.config === null).toBe(faults.length > 0);
    });
  }
}

export function pem(keys: { publicKey: KeyObject; privateKey: KeyObject }): {
  publicKey: string;
  privateKey: string;
} {
  return {
    publicKey: keys.publicKey.export({ type: 'spki', format: 'pem' }) as string,
    privateKey: keys.privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
  };
}
