/** Loads configurations from texts: a temporary directory, removed at the end of the test file. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterAll } from 'vitest';
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
