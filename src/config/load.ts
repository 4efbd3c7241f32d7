/**
 * pgdog.toml, users.toml and the environment in; a `Config`, or every fault with its place, out. Owns the order of
 * reading and what beats what: a file beats the environment, users.toml's [admin] beats pgdog.toml's. What a key
 * means is in schema.ts, what keys mean together in checks.ts. Throws nothing for a bad file.
 */
import { randomBytes } from 'node:crypto';
import { Secret } from '../base/secret.ts';
import type { Draft } from './check-context.ts';
import { checkConfig } from './checks.ts';
import type { AdminConfig, Config, DatabaseConfig, IssuerConfig, UserConfig } from './config.ts';
import { type ConfigFile, isTable, lineOf, readConfigFile } from './config-file.ts';
import type { Environment } from './env.ts';
import { didYouMean, type Fault, FaultLog } from './faults.ts';
import {
  ADMIN,
  type AdminRow,
  CLAIM_SETTINGS,
  DATABASES,
  type DatabaseRow,
  GENERAL,
  ISSUERS,
  JWT,
  LOGIN_RULES,
  ROLE_RULES,
  SCHEMA,
  type SchemaSection,
  TCP,
  TURNSTILE,
  TURNSTILE_DATABASES,
  TURNSTILE_USERS,
  USERS,
  type UserRow,
} from './schema.ts';
import { headerOf, type Row, SectionReader } from './section-reader.ts';
import { scanTomlPositions } from './toml-position.ts';
import { UNSUPPORTED_SECTIONS, unsupportedMessage } from './unsupported.ts';

/** Where a fault of an option of the command line is. */
const COMMAND_LINE = 'command line';

export interface LoadOptions {
  configPath: string;
  usersPath: string;
  /** `process.env`, or what a test wants it to be. */
  env: Environment;
  /** Issuers of the command line: each is a row of turnstile.issuers with discovery, behind those of the file. */
  allowedOidcIssuers?: readonly string[];
  /** The command line beats auth_required of the file; it can only make it true. */
  authRequired?: boolean;
  /** Now, for certificates that have expired; milliseconds since the epoch, the clock's by default. */
  nowMs?: number;
}

export interface LoadResult {
  /** Null when there is any fault. */
  config: Config | null;
  faults: Fault[];
  warnings: Fault[];
}

/** Reads and checks both files. Every fault is reported, not the first only. */
export function loadConfig(options: LoadOptions): LoadResult {
  const log = new FaultLog();
  const main = readConfigFile(options.configPath, log);
  const users = readConfigFile(options.usersPath, log);
  checkSections(main, 'pgdog.toml', log);
  checkSections(users, 'users.toml', log);
  // A file that cannot be parsed has no keys; what is missing because of that is not worth a word.
  const isReadable = log.faults.every((fault) => fault.key !== '');

  const reader = new SectionReader(log, options.env);
  const draft = readAll(main, users, reader, log, options);
  if (isReadable) {
    checkConfig(draft, { reader, log, configFile: main.name, nowMs: options.nowMs ?? Date.now() });
  }
  const { config } = draft;
  // Last, since the checks tell what the file says from what always holds.
  const always = [config.admin.user, ...(config.jwt.serverUser === null ? [] : [config.jwt.serverUser])];
  config.turnstile.reservedRoles = [...new Set([...config.turnstile.reservedRoles, ...always])];

  const order = [main.name, users.name, 'environment', COMMAND_LINE];
  const byPlace = (a: Fault, b: Fault): number =>
    order.indexOf(a.file) - order.indexOf(b.file) || a.line - b.line;
  const faults = log.faults.sort(byPlace);
  return { config: faults.length === 0 ? config : null, faults, warnings: log.warnings.sort(byPlace) };
}

function readAll(
  main: ConfigFile,
  users: ConfigFile,
  reader: SectionReader,
  log: FaultLog,
  options: Pick<LoadOptions, 'allowedOidcIssuers' | 'authRequired'>,
): Draft {
  const generalRow = rowOf(main, 'general', log);
  const general = reader.read(generalRow, GENERAL);
  const jwt = reader.read(generalRow, JWT);
  reader.checkUnknown(generalRow);
  const read = <T>(row: Row, specs: Parameters<typeof reader.read<T>>[1]): T => {
    reader.checkUnknown(row);
    return reader.read(row, specs);
  };
  const databases = rowsOf(main, 'databases', log).map((row) => read<DatabaseRow>(row, DATABASES));
  const userRows = rowsOf(users, 'users', log).map((row) => read<UserRow>(row, USERS));
  const turnstile = read(rowOf(main, 'turnstile', log), TURNSTILE);
  const tcp = read(rowOf(main, 'tcp', log), TCP);
  const issuerRows = rowsOf(main, 'turnstile.issuers', log).map((row) => read<IssuerConfig>(row, ISSUERS));
  const config: Config = {
    general,
    jwt,
    turnstile: {
      ...turnstile,
      reservedRoles: [...turnstile.reservedRoles],
      authRequired: turnstile.authRequired || options.authRequired === true,
    },
    tcp,
    databases: databases.map(databaseOf),
    users: userRows.map(userOf),
    admin: readAdmin(main, users, read, log),
    issuers: [
      ...issuerRows,
      ...namedIssuers(issuerRows, options.allowedOidcIssuers ?? []).map((row) => read(row, ISSUERS)),
    ],
    loginRules: rowsOf(main, 'turnstile.login_rules', log).map((row) => read(row, LOGIN_RULES)),
    roleRules: rowsOf(main, 'turnstile.role_rules', log).map((row) => read(row, ROLE_RULES)),
    claimSettings: rowsOf(main, 'turnstile.claim_settings', log).map((row) => read(row, CLAIM_SETTINGS)),
    turnstileDatabases: rowsOf(main, 'turnstile.databases', log).map((row) => read(row, TURNSTILE_DATABASES)),
    turnstileUsers: rowsOf(main, 'turnstile.users', log).map((row) => read(row, TURNSTILE_USERS)),
  };
  return { config, userRows };
}

/** Rows for the issuers of the command line that the file does not have; each once. */
function namedIssuers(given: readonly IssuerConfig[], named: readonly string[]): Row[] {
  const file: ConfigFile = {
    name: COMMAND_LINE,
    directory: process.cwd(),
    table: {},
    positions: scanTomlPositions(''),
  };
  const fresh = [...new Set(named)].filter((issuer) => !given.some((row) => row.issuer === issuer));
  return fresh.map((issuer, index) => ({
    file,
    section: sectionOf('turnstile.issuers'),
    label: `turnstile.issuers[${given.length + index}]`,
    path: [],
    table: { issuer, discovery: true },
  }));
}

function readAdmin(
  main: ConfigFile,
  users: ConfigFile,
  read: (row: Row, specs: typeof ADMIN) => AdminRow,
  log: FaultLog,
): AdminConfig {
  // Both are read, so that the faults of both are reported; the second reading's places are the ones kept.
  const isInUsers = Object.hasOwn(users.table, 'admin');
  const rows = [read(rowOf(main, 'admin', log), ADMIN)];
  if (isInUsers) rows.push(read(rowOf(users, 'admin', log), ADMIN));
  if (isInUsers && Object.hasOwn(main.table, 'admin')) {
    const place = { file: main.name, line: lineOf(main, ['admin']), key: 'admin' };
    log.warn(place, `is also in ${users.name}, which wins; this table has no effect`);
  }
  const row = rows.at(-1)!;
  return { ...row, password: row.password ?? new Secret(randomBytes(32).toString('base64url')) };
}

function databaseOf(row: DatabaseRow): DatabaseConfig {
  return { ...row, databaseName: row.databaseName ?? row.name };
}

function userOf(row: UserRow): UserConfig {
  const { password, passwords, database, databases, ...rest } = row;
  return {
    ...rest,
    passwords: password === null ? [...passwords] : [password, ...passwords],
    databases: database === null ? [...databases] : [database],
  };
}

function sectionOf(name: string): SchemaSection {
  const section = SCHEMA.find((candidate) => candidate.name === name);
  if (section === undefined) throw new RangeError(`no section ${name}`);
  return section;
}

function rowOf(file: ConfigFile, name: string, log: FaultLog): Row {
  const section = sectionOf(name);
  const value = file.table[name];
  const table = isTable(value) ? value : {};
  if (value !== undefined && !isTable(value)) {
    const place = { file: file.name, line: lineOf(file, [name]), key: name };
    log.fault(place, `must be one table: write ${headerOf(section)}`);
  }
  return { file, section, label: name, path: [name], table };
}

function rowsOf(file: ConfigFile, name: string, log: FaultLog): Row[] {
  const section = sectionOf(name);
  const path = name.split('.');
  let value: unknown = file.table;
  for (const part of path) value = isTable(value) ? value[part] : undefined;
  if (value === undefined) return [];
  if (!Array.isArray(value) || !value.every(isTable)) {
    const place = { file: file.name, line: lineOf(file, path), key: name };
    log.fault(place, `must be a list of tables: write ${headerOf(section)}`);
    return [];
  }
  return value.map((table, index) => ({
    file,
    section,
    label: `${name}[${index}]`,
    path: [...path, index],
    table,
  }));
}

function checkSections(file: ConfigFile, kind: SchemaSection['file'], log: FaultLog): void {
  const own = SCHEMA.filter((section) => section.file === kind || section.name === 'admin');
  for (const name of Object.keys(file.table)) {
    if (own.some((section) => section.name === name)) continue;
    const place = { file: file.name, line: lineOf(file, [name]), key: name };
    const elsewhere = SCHEMA.find((section) => section.name === name);
    const home = SCHEMA.find((section) => section.specs.some((spec) => spec.key === name));
    if (elsewhere !== undefined) log.fault(place, `belongs in ${elsewhere.file}`);
    else if (UNSUPPORTED_SECTIONS.includes(name)) log.warn(place, unsupportedMessage(name));
    else if (!isTable(file.table[name]) && !Array.isArray(file.table[name]) && home !== undefined) {
      log.fault(place, `stands outside of any section; it belongs in ${headerOf(home)}`);
    } else {
      const names = [...own.map((section) => section.name), ...UNSUPPORTED_SECTIONS];
      log.fault(place, `unknown section${didYouMean(name, names)}`);
    }
  }
}
