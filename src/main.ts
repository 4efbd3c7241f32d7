#!/usr/bin/env node
/**
 * The command line: run, check, demo, token, sql, doctor. Owns options, exit codes (0 fine, 1 bad config or input, 2
 * wrong usage, 3 cannot listen), signals, and what goes to which stream. Everything that works is loaded when its
 * command runs, so that `check` needs no pooler. No secret is printed but a freshly minted token and, by `sql claims`,
 * the key.
 */
import { readFileSync } from 'node:fs';
import { Command, CommanderError, InvalidArgumentError, Option } from 'commander';
import { createLogger, type LogLevel } from './base/log.ts';
import type { BackendIdentity, Config } from './config/config.ts';
import { formatFault } from './config/faults.ts';
import { type LoadResult, loadConfig } from './config/load.ts';

const ExitCode = { Fine: 0, BadInput: 1, Usage: 2, CannotListen: 3 } as const;
type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];

/** A token is refused past 16 KiB anyway; this leaves room for line ends. */
const STDIN_BYTES_MAX = 64 * 1024;
/** An error of listen(2) or of the lookup before it: the address is the problem, not the configuration. */
const LISTEN_ERRORS: readonly string[] = ['EADDRINUSE', 'EACCES', 'EADDRNOTAVAIL'];

interface FileOptions {
  config: string;
  users: string;
}

/** What the command line adds to the files. */
interface ConfigOptions extends FileOptions {
  allowedOidcIssuer?: string[];
  authRequired?: boolean;
}

interface CheckOptions extends ConfigOptions {
  strict: boolean;
}

interface RunOptions extends ConfigOptions {
  port?: number;
  host?: string;
}

interface DemoOptions {
  once: boolean;
  port?: number;
  host?: string;
  logLevel: LogLevel;
}

interface MintOptions {
  key: string;
  sub: string;
  ttl: number;
  aud?: string;
  iss?: string;
  kid?: string;
  typ?: string;
  claim?: Record<string, unknown>;
}

interface ProvisionOptions extends ConfigOptions {
  role: string[];
  database?: string;
  identity?: BackendIdentity;
}

interface DoctorOptions extends ConfigOptions {
  role?: string[];
  database?: string;
}

interface ExplainOptions extends ConfigOptions {
  database?: string;
}

/** Ends the command with a sentence on stderr and an exit code; never holds a secret. */
class CommandFailure extends Error {
  override name = 'CommandFailure';
  readonly exitCode: ExitCode;

  constructor(exitCode: ExitCode, message: string) {
    super(message);
    this.exitCode = exitCode;
  }
}

async function run(options: RunOptions): Promise<ExitCode> {
  const loaded = load(options);
  if (loaded.config === null) return printFaults(loaded);
  const config = withListenAddress(loaded.config, options);
  const log = createLogger({ format: config.general.logFormat, level: config.general.logLevel });
  for (const warning of loaded.warnings) log.warn(formatFault(warning));
  const { startWorker } = await import('./worker.ts');
  let worker: Awaited<ReturnType<typeof startWorker>>;
  try {
    worker = await startWorker({ config, log });
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    if (typeof code === 'string' && LISTEN_ERRORS.includes(code)) {
      log.fatal({ code, host: config.general.host, port: config.general.port }, 'cannot listen');
      return ExitCode.CannotListen;
    }
    log.fatal({ err: error }, 'cannot start');
    return ExitCode.BadInput;
  }
  return await new Promise<ExitCode>((resolve) => {
    let isDraining = false;
    const onSignal = (signal: NodeJS.Signals): void => {
      if (isDraining) {
        log.warn({ signal }, 'a second signal: ending at once');
        worker.destroy();
        process.exit(ExitCode.BadInput);
      }
      isDraining = true;
      log.info({ signal }, 'draining');
      worker.drain().then(
        () => resolve(ExitCode.Fine),
        (error: unknown) => {
          log.error({ err: error }, 'draining failed');
          worker.destroy();
          resolve(ExitCode.BadInput);
        },
      );
    };
    process.on('SIGTERM', onSignal);
    process.on('SIGINT', onSignal);
    // After the handlers: whoever waits for this line may send a signal in the next moment.
    log.info({ host: worker.host, port: worker.port, pid: process.pid }, 'listening');
  });
}

function check(options: CheckOptions): ExitCode {
  const loaded = options.strict ? withStrictness(load(options)) : load(options);
  if (loaded.config === null) return printFaults(loaded);
  for (const warning of loaded.warnings) process.stdout.write(`warning: ${formatFault(warning)}\n`);
  const { databases, users } = loaded.config;
  const found = `${count(new Set(databases.map((row) => row.name)).size, 'database')}, ${count(users.length, 'user')}`;
  process.stdout.write(`the configuration is fine: ${found}, ${count(loaded.warnings.length, 'warning')}\n`);
  return ExitCode.Fine;
}

async function demo(options: DemoOptions): Promise<number> {
  const log = createLogger({ format: 'text', level: options.logLevel });
  const [{ runDemo }, { startWorker }] = await Promise.all([import('./demo/demo.ts'), import('./worker.ts')]);
  return await runDemo({
    once: options.once,
    log,
    startWorker,
    ...(options.port === undefined ? {} : { port: options.port }),
    ...(options.host === undefined ? {} : { host: options.host }),
  });
}

async function mint(options: MintOptions): Promise<ExitCode> {
  let privateKeyPem: string;
  try {
    privateKeyPem = readFileSync(options.key, 'utf8');
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? 'unknown error';
    throw new CommandFailure(ExitCode.BadInput, `the key ${options.key} cannot be read (${code})`);
  }
  const { mintToken } = await import('./auth/token-mint.ts');
  const token = await mintToken({
    privateKeyPem,
    subject: options.sub,
    ttlSeconds: options.ttl,
    nowMs: Date.now(),
    ...(options.aud === undefined ? {} : { audience: options.aud }),
    ...(options.iss === undefined ? {} : { issuer: options.iss }),
    ...(options.kid === undefined ? {} : { keyId: options.kid }),
    ...(options.typ === undefined ? {} : { type: options.typ }),
    ...(options.claim === undefined ? {} : { claims: options.claim }),
  });
  process.stdout.write(`${token}\n`);
  return ExitCode.Fine;
}

async function explain(argument: string, options: ExplainOptions): Promise<ExitCode> {
  const loaded = load(options);
  if (loaded.config === null) return printFaults(loaded);
  const token = (argument === '-' ? await readStdin() : argument).trim();
  if (token === '') throw new CommandFailure(ExitCode.BadInput, 'there is no token to explain');
  const { explainToken } = await import('./auth/token-explain.ts');
  const { accepted, lines } = await explainToken({
    config: loaded.config,
    token,
    database: options.database ?? null,
    nowMs: Date.now(),
  });
  process.stdout.write(`${lines.join('\n')}\n`);
  return accepted ? ExitCode.Fine : ExitCode.BadInput;
}

async function provision(options: ProvisionOptions): Promise<ExitCode> {
  const loaded = load(options);
  if (loaded.config === null) return printFaults(loaded);
  const [{ provisionSql }, { ScramKeys }] = await Promise.all([
    import('./provision/provision-sql.ts'),
    import('./auth/scram-keys.ts'),
  ]);
  const text = await provisionSql({
    config: loaded.config,
    roles: options.role,
    database: options.database ?? null,
    identity: options.identity ?? null,
    scramKeys: new ScramKeys(),
  });
  process.stdout.write(text);
  return ExitCode.Fine;
}

async function claims(options: ConfigOptions): Promise<ExitCode> {
  const loaded = load(options);
  if (loaded.config === null) return printFaults(loaded);
  const { claimsSql } = await import('./provision/claims-sql.ts');
  process.stdout.write(claimsSql(loaded.config));
  return ExitCode.Fine;
}

async function doctor(options: DoctorOptions): Promise<ExitCode> {
  const loaded = load(options);
  if (loaded.config === null) return printFaults(loaded);
  const [{ runDoctor }, { ScramKeys }] = await Promise.all([
    import('./provision/doctor.ts'),
    import('./auth/scram-keys.ts'),
  ]);
  const report = await runDoctor({
    config: loaded.config,
    database: options.database ?? null,
    roles: options.role ?? [],
    scramKeys: new ScramKeys(),
  });
  process.stdout.write(`${report.lines().join('\n')}\n`);
  return report.healthy ? ExitCode.Fine : ExitCode.BadInput;
}

function load(options: ConfigOptions): LoadResult {
  return loadConfig({
    configPath: options.config,
    usersPath: options.users,
    env: process.env,
    allowedOidcIssuers: options.allowedOidcIssuer ?? [],
    authRequired: options.authRequired === true,
  });
}

/** Every warning about security becomes a fault. */
function withStrictness(loaded: LoadResult): LoadResult {
  const weaknesses = loaded.warnings.filter((warning) => warning.isWeakness);
  return {
    config: weaknesses.length === 0 ? loaded.config : null,
    faults: [...loaded.faults, ...weaknesses],
    warnings: loaded.warnings.filter((warning) => !warning.isWeakness),
  };
}

function printFaults(loaded: LoadResult): ExitCode {
  for (const warning of loaded.warnings) process.stderr.write(`warning: ${formatFault(warning)}\n`);
  for (const fault of loaded.faults) process.stderr.write(`${formatFault(fault)}\n`);
  process.stderr.write(`the configuration has ${count(loaded.faults.length, 'fault')}\n`);
  return ExitCode.BadInput;
}

function count(number: number, noun: string): string {
  return `${number} ${noun}${number === 1 ? '' : 's'}`;
}

function withListenAddress(config: Config, options: RunOptions): Config {
  const { host, port } = config.general;
  return {
    ...config,
    general: { ...config.general, host: options.host ?? host, port: options.port ?? port },
  };
}

async function readStdin(): Promise<string> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of process.stdin as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > STDIN_BYTES_MAX)
      throw new CommandFailure(ExitCode.BadInput, 'the input is too long for a token');
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

function parsePort(text: string): number {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : -1;
  if (port < 0 || port > 65_535) throw new InvalidArgumentError('It must be a number from 0 to 65535.');
  return port;
}

function parseTtl(text: string): number {
  const [, digits, unit] = /^(\d{1,7})([smhd])$/.exec(text) ?? [];
  const seconds = Number(digits) * ({ s: 1, m: 60, h: 3600, d: 86_400 }[unit ?? ''] ?? Number.NaN);
  if (!(seconds > 0)) throw new InvalidArgumentError('It must be a time such as 30s, 5m or 1h.');
  return seconds;
}

/** `a.b=1` into `{a: {b: 1}}`, merged with the claims before it. */
function parseClaim(text: string, previous: Record<string, unknown> | undefined): Record<string, unknown> {
  const equals = text.indexOf('=');
  const names = text.slice(0, Math.max(equals, 0)).split('.');
  if (names.includes('') || names.includes('__proto__')) {
    throw new InvalidArgumentError('It must be name=value; dots in the name nest.');
  }
  const claims = previous ?? {};
  let target = claims;
  for (const name of names.slice(0, -1)) {
    if (!Object.hasOwn(target, name)) target[name] = {};
    const inner = target[name];
    if (typeof inner !== 'object' || inner === null || Array.isArray(inner)) {
      throw new InvalidArgumentError(`${name} already has a value that nothing can stand in.`);
    }
    target = inner as Record<string, unknown>;
  }
  const last = names.at(-1)!;
  if (Object.hasOwn(target, last)) throw new InvalidArgumentError(`${names.join('.')} is given twice.`);
  target[last] = parseClaimValue(text.slice(equals + 1));
  return claims;
}

function parseClaimValue(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return text;
  }
}

function packageVersion(): string {
  const manifest: unknown = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'));
  return (manifest as { version: string }).version;
}

function addFiles(command: Command): Command {
  return command
    .option('-c, --config <file>', 'the configuration', 'pgdog.toml')
    .option('-u, --users <file>', 'the users', 'users.toml');
}

/** Appends: the option may be repeated. */
function collect(value: string, previous: string[] | undefined): string[] {
  return [...(previous ?? []), value];
}

function addTokenRules(command: Command): Command {
  return command
    .option(
      '--allowed-oidc-issuer <url>',
      'accept tokens of this issuer too, its keys found by discovery; may be repeated',
      collect,
    )
    .option('--auth-required', 'let nobody in without a proof, whatever the file says');
}

function addAddress(command: Command): Command {
  return command
    .option('-p, --port <number>', 'listen on this port; 0 picks a free one', parsePort)
    .option('-H, --host <address>', 'listen on this address');
}

/** `finish` gets the exit code of the command that ran. */
function buildProgram(finish: (code: number) => void): Command {
  const program = new Command('pgturnstile');
  program
    .description('A PostgreSQL connection pooler that you enter with a token.')
    .version(packageVersion(), '-V, --version')
    .exitOverride()
    .showHelpAfterError('(pgturnstile --help shows the commands)')
    .addHelpText(
      'after',
      `
Examples:
  $ pgturnstile check                                  name every fault of pgdog.toml and users.toml
  $ pgturnstile check --strict                         refuse what is less safe than it could be, too
  $ pgturnstile run --config /etc/pgturnstile/pgdog.toml --users /etc/pgturnstile/users.toml
  $ pgturnstile run --allowed-oidc-issuer https://id.example.com --auth-required
  $ pgturnstile demo --once                            a whole tour on a PostgreSQL of its own
  $ pgturnstile token mint --key private.pem --sub alice --ttl 5m --aud app
  $ pgturnstile token explain - --database app < token.txt
  $ pgturnstile sql provision --role alice             what PostgreSQL needs for the role
  $ pgturnstile doctor                                 what is wrong at PostgreSQL

Exit codes: 0 fine, 1 bad configuration or input, 2 wrong usage, 3 cannot listen.`,
    );

  addTokenRules(addAddress(addFiles(program.command('run', { isDefault: true }))))
    .description('run the pooler (the default)')
    .action(async (options: RunOptions) => finish(await run(options)));

  addTokenRules(addFiles(program.command('check')))
    .description('check both files and print every fault with its file, line and key')
    .option('--strict', 'warnings about security are faults', false)
    .action((options: CheckOptions) => finish(check(options)));

  addAddress(program.command('demo'))
    .description('start PostgreSQL, a token issuer and the pooler, and show how to log in')
    .option('--once', 'run the tour without a person, then end', false)
    .addOption(
      new Option('--log-level <level>', "least severity of the pooler's own log")
        .choices(['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'])
        .default('warn'),
    )
    .action(async (options: DemoOptions) => finish(await demo(options)));

  addTokenCommands(program.command('token').description('make or explain a token'), finish);
  addDatabaseCommands(program, finish);
  return program;
}

function addDatabaseCommands(program: Command, finish: (code: number) => void): void {
  addTokenRules(addFiles(program.command('doctor')))
    .description('connect to PostgreSQL and say what is wrong there, with the fix')
    .option('-d, --database <name>', 'this database only')
    .option('-r, --role <role>', 'a role to try; may be repeated', collect)
    .action(async (options: DoctorOptions) => finish(await doctor(options)));

  const sql = program.command('sql').description('print SQL for PostgreSQL');
  addTokenRules(addFiles(sql.command('provision')))
    .description('print what makes roles ready for tokens: SQL, pg_hba.conf, pg_ident.conf, CloudNativePG')
    .requiredOption('-r, --role <role>', 'the role; may be repeated', collect)
    .option('-d, --database <name>', 'for this database; needed when they differ')
    .addOption(
      new Option('-i, --identity <way>', 'instead of backend_identity').choices([
        'set_role',
        'login_map',
        'login_password',
      ]),
    )
    .addHelpText(
      'after',
      `
Examples:
  $ pgturnstile sql provision --role alice --role bob --database app | psql -d app
  $ pgturnstile sql provision --role alice --identity login_map`,
    )
    .action(async (options: ProvisionOptions) => finish(await provision(options)));

  addTokenRules(addFiles(sql.command('claims')))
    .description(
      'print the functions by which policies check signed claims; holds claims_mac_key: use a pipe',
    )
    .addHelpText(
      'after',
      `
Examples:
  $ pgturnstile sql claims | psql --no-psqlrc --set ON_ERROR_STOP=1 --dbname app`,
    )
    .action(async (options: ConfigOptions) => finish(await claims(options)));
}

function addTokenCommands(token: Command, finish: (code: number) => void): void {
  token
    .command('mint')
    .description('sign a token with a private key, for tests and first steps')
    .requiredOption('--key <file>', 'private key (PEM; RSA, EC or Ed25519)')
    .requiredOption('--sub <subject>', 'whom the token is for')
    .addOption(
      new Option('--ttl <time>', 'how long it is valid: 30s, 5m, 1h').argParser(parseTtl).default(300, '5m'),
    )
    .option('--aud <audience>', 'audience')
    .option('--iss <issuer>', 'issuer')
    .option('--kid <id>', 'key id')
    .option('--typ <type>', 'type of the header: JWT unless told otherwise')
    .option('--claim <name=value>', 'further claim; JSON or text, dots nest; may be repeated', parseClaim)
    .addHelpText(
      'after',
      `
Examples:
  $ pgturnstile token mint --key private.pem --sub alice --ttl 5m --aud app
  $ pgturnstile token mint --key private.pem --sub alice --claim db.role=reader --claim 'groups=["a","b"]'`,
    )
    .action(async (options: MintOptions) => finish(await mint(options)));

  addTokenRules(
    addFiles(
      token.command('explain').argument('[token]', 'the token, or - to read it from standard input', '-'),
    ),
  )
    .description('say what a token would be here, or why it is refused')
    .option('-d, --database <name>', 'the database to enter')
    .addHelpText(
      'after',
      `
Examples:
  $ pgturnstile token explain - --database app < token.txt     (other users cannot see it, unlike an argument)`,
    )
    .action(async (argument: string, options: ExplainOptions) => finish(await explain(argument, options)));
}

async function main(argv: string[]): Promise<number> {
  let exitCode: number = ExitCode.Fine;
  try {
    await buildProgram((code) => {
      exitCode = code;
    }).parseAsync(argv);
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? ExitCode.Fine : ExitCode.Usage;
    // A stack is for our bugs; bad input gets its sentence.
    const message = error instanceof Error ? error.message : 'unknown error';
    process.stderr.write(`pgturnstile: ${message}\n`);
    return error instanceof CommandFailure ? error.exitCode : ExitCode.BadInput;
  }
}

process.exit(await main(process.argv));
