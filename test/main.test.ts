/**
 * The command line as a child process. The sources are transpiled once into a temporary directory; the pooler, the
 * demo and the token modules are replaced there by doubles that print what they were given, so that these tests
 * are about options, streams, signals and exit codes alone.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { generateKeyPairSync } from 'node:crypto';
import {
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const project = fileURLToPath(new URL('..', import.meta.url));
const root = realpathSync(mkdtempSync(path.join(tmpdir(), 'pgturnstile-main-')));
const work = path.join(root, 'work');

const DOUBLES: Record<string, string> = {
  'worker.js': `
    export async function startWorker({ config, log }) {
      const { host, port, logLevel } = config.general;
      if (port >= 9000) throw Object.assign(new Error('listen ' + port), { code: { 9001: 'EADDRINUSE', 9002: 'EACCES' }[port] });
      const keepAlive = setInterval(() => {}, 1000);
      return {
        host, port: port === 0 ? 5555 : port,
        drain: () => port === 8001 ? new Promise(() => {}) : port === 8002 ? Promise.reject(new Error('stuck')) : Promise.resolve(),
        destroy: () => { clearInterval(keepAlive); console.log('destroyed'); },
      };
    }`,
  'demo/demo.js': `
    export async function runDemo({ log, startWorker, ...options }) {
      console.log(JSON.stringify({ ...options, level: log.level, pooler: startWorker.name }));
      return options.once ? 0 : 1;
    }`,
  'auth/token-mint.js': `
    export async function mintToken({ privateKeyPem, nowMs, ...options }) {
      if (!privateKeyPem.includes('PRIVATE KEY')) throw new Error('not a private key');
      return JSON.stringify({ ...options, fresh: Math.abs(nowMs - Date.now()) < 60000 });
    }`,
  'auth/token-explain.js': `
    export async function explainToken({ config, token, database }) {
      return { accepted: token === 'good', lines: ['token of ' + token.length, 'database ' + database, config.general.authType] };
    }`,
};

beforeAll(() => {
  const source = path.join(project, 'src');
  for (const name of readdirSync(source, { recursive: true, encoding: 'utf8' })) {
    if (!name.endsWith('.ts')) continue;
    const { outputText } = ts.transpileModule(readFileSync(path.join(source, name), 'utf8'), {
      compilerOptions: {
        target: ts.ScriptTarget.ES2023,
        module: ts.ModuleKind.ES2022,
        verbatimModuleSyntax: true,
        rewriteRelativeImportExtensions: true,
      },
    });
    write(path.join('dist', name.replace(/\.ts$/, '.js')), outputText);
  }
  for (const [name, text] of Object.entries(DOUBLES)) write(path.join('dist', name), text);
  cpSync(path.join(project, 'package.json'), path.join(root, 'package.json'));
  symlinkSync(path.join(project, 'node_modules'), path.join(root, 'node_modules'));
  write('work/pgdog.toml', '[general]\nport = 0\n[[databases]]\nname = "app"\nhost = "h"\nuser = "u"\n');
  write('work/users.toml', '[[users]]\nname = "a"\npassword = "hush-hush"\ndatabase = "app"\n');
  write(
    'work/key.pem',
    generateKeyPairSync('ed25519').privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
  );
});
afterAll(() => rmSync(root, { recursive: true, force: true }));

function write(name: string, text: string): void {
  const file = path.join(root, name);
  mkdirSync(path.dirname(file), { recursive: true });
  writeFileSync(file, text);
}

interface Outcome {
  code: number | null;
  stdout: string;
  stderr: string;
}

function start(args: string[]): ChildProcess {
  const env = { PATH: process.env['PATH'], HOME: process.env['HOME'] };
  return spawn(process.execPath, [path.join(root, 'dist/main.js'), ...args], { cwd: work, env });
}

/** Sends each signal once, when its word has appeared on standard output. */
function outcome(
  child: ChildProcess,
  ...signals: [word: string, signal: NodeJS.Signals][]
): Promise<Outcome> {
  return new Promise((resolve, reject) => {
    const result: Outcome = { code: null, stdout: '', stderr: '' };
    child.stdout!.setEncoding('utf8').on('data', (text: string) => {
      result.stdout += text;
      const [next] = signals;
      if (next === undefined || !result.stdout.includes(next[0])) return;
      signals.shift();
      child.kill(next[1]);
    });
    child.stderr!.setEncoding('utf8').on('data', (text: string) => {
      result.stderr += text;
    });
    child.on('error', reject);
    child.on('close', (code) => resolve({ ...result, code }));
  });
}

function cli(...args: string[]): Promise<Outcome> {
  return outcome(start(args));
}

describe('help and usage', () => {
  test('--version prints the version of package.json', async () => {
    const { version } = JSON.parse(readFileSync(path.join(project, 'package.json'), 'utf8')) as {
      version: string;
    };
    expect(await cli('--version')).toEqual({ code: 0, stdout: `${version}\n`, stderr: '' });
  });

  test('--help shows every command, examples and the exit codes, and ends well', async () => {
    const { code, stdout } = await cli('--help');
    expect(code).toBe(0);
    for (const word of ['run', 'check', 'demo', 'token', 'Examples:', 'Exit codes:'])
      expect(stdout).toContain(word);
  });

  test('help of a command inside a command ends well too', async () => {
    const { code, stdout } = await cli('token', 'mint', '--help');
    expect([code, stdout.includes('--claim <name=value>')]).toEqual([0, true]);
  });

  test.each([
    ['an unknown option', ['check', '--confg', 'x'], "unknown option '--confg'"],
    ['an unknown command', ['chekc'], 'too many arguments'],
    ['a port past the last', ['run', '--port', '65536'], 'from 0 to 65535'],
    ['a port that is no number', ['run', '--port', '0x10'], 'from 0 to 65535'],
    ['a missing required option', ['token', 'mint', '--key', 'key.pem'], '--sub'],
    ['a time without a unit', ['token', 'mint', '--key', 'k', '--sub', 's', '--ttl', '30'], 'such as 30s'],
    ['no time at all', ['token', 'mint', '--key', 'k', '--sub', 's', '--ttl', '0s'], 'such as 30s'],
    ['a claim without a value', ['token', 'mint', '--key', 'k', '--sub', 's', '--claim', 'a'], 'name=value'],
    ['a claim with a hole', ['token', 'mint', '--key', 'k', '--sub', 's', '--claim', 'a..b=1'], 'name=value'],
    [
      'a claim of a prototype',
      ['token', 'mint', '--key', 'k', '--sub', 's', '--claim', '__proto__.x=1'],
      'name=',
    ],
    ['token without a command', ['token'], 'Usage: pgturnstile token'],
    ['a level that is none', ['demo', '--log-level', 'loud'], 'Allowed choices'],
  ])('%s is wrong usage: exit code 2 and nothing on standard output', async (_name, args, message) => {
    const { code, stdout, stderr } = await cli(...args);
    expect([code, stdout]).toEqual([2, '']);
    expect(stderr).toContain(message);
  });

  test('a claim below one that is no object is wrong usage', async () => {
    const mint = ['token', 'mint', '--key', 'key.pem', '--sub', 's'];
    for (const claims of [
      ['a=1', 'a.b=2'],
      ['a.b=1', 'a=2'],
      ['a=[]', 'a.b=1'],
    ]) {
      expect((await cli(...mint, ...claims.flatMap((claim) => ['--claim', claim]))).code).toBe(2);
    }
  });
});

describe('check', () => {
  test('a sound pair of files', async () => {
    const { code, stdout, stderr } = await cli('check');
    expect([code, stdout, stderr]).toEqual([
      0,
      'the configuration is fine: 1 database, 1 user, 0 warnings\n',
      '',
    ]);
  });

  test('every fault with file, line and key, warnings beside them, exit code 1, no secret', async () => {
    write('work/bad.toml', '[general]\nprot = 1\nworkers = 9\n\nport = "x"\n');
    write('work/badusers.toml', '[[users]]\nname = "a"\npassword = "hush-hush"\npasswords = "hush-hush"\n');
    const { code, stdout, stderr } = await cli('check', '--config', 'bad.toml', '--users', 'badusers.toml');
    expect([code, stdout]).toEqual([1, '']);
    expect(stderr.split('\n')).toEqual([
      expect.stringContaining('warning: bad.toml: databases: there is none'),
      expect.stringContaining('warning: bad.toml:3: general.workers: is PgDog'),
      expect.stringContaining('warning: badusers.toml:1: users[0].databases: names no database'),
      'bad.toml:2: general.prot: unknown key; did you mean "port"?',
      'bad.toml:5: general.port: must be a whole number',
      'badusers.toml:4: users[0].passwords: must be a list of strings',
      'the configuration has 3 faults',
      '',
    ]);
    expect(stderr).not.toContain('hush');
  });

  test('--strict: warnings about security are faults, other warnings are not', async () => {
    const jwt =
      '[general]\nhost = "127.0.0.1"\nauth_type = "jwt"\njwt_jwks_url = "https://id.example.com/jwks"\n';
    write(
      'work/loose.toml',
      `${jwt}jwt_audience = "app"\nworkers = 9\n[[databases]]\nname = "app"\nhost = "h"\n`,
    );
    const loose = await cli('check', '--config', 'loose.toml');
    expect([loose.code, loose.stdout]).toEqual([
      0,
      expect.stringContaining('turnstile.jwt_issuer: is not set'),
    ]);
    const strict = await cli('check', '--config', 'loose.toml', '--strict');
    expect([strict.code, strict.stdout]).toEqual([1, '']);
    expect(strict.stderr.split('\n')).toEqual([
      expect.stringMatching(/^warning: loose.toml:6: general.workers: /),
      expect.stringMatching(/^loose.toml: turnstile.jwt_issuer: is not set: /),
      'the configuration has 1 fault',
      '',
    ]);
    write('work/tight.toml', '[general]\nworkers = 9\n[[databases]]\nname = "app"\nhost = "h"\n');
    const tight = await cli('check', '--config', 'tight.toml', '--strict');
    expect([tight.code, tight.stdout]).toEqual([0, expect.stringMatching(/, 1 warning\n$/)]);
  });

  test.each(['run', 'check', 'token explain'])('%s takes issuers from the command line', async (command) => {
    write(
      'work/oidc.toml',
      '[general]\nauth_type = "jwt"\nhost = "127.0.0.1"\njwt_audience = "app"\n[[databases]]\nname = "app"\nhost = "h"\n',
    );
    const args = [...command.split(' '), '--config', 'oidc.toml'];
    const without = await cli(...args);
    expect([without.code, without.stderr]).toEqual([
      1,
      expect.stringContaining('jwt needs jwt_public_key_file'),
    ]);
    const refused = await cli(...args, '--allowed-oidc-issuer', 'http://id.example.com');
    expect([refused.code, refused.stderr]).toEqual([
      1,
      expect.stringContaining('command line: turnstile.issuers[0].issuer: must be https'),
    ]);
  });

  test('--auth-required beats a file that lets anonymous users in', async () => {
    write(
      'work/anonymous.toml',
      '[turnstile]\nauth_required = false\nanonymous_role = "anon"\nanonymous_users = ["guest"]\n[[databases]]\nname = "app"\nhost = "h"\n[general]\njwt_server_user = "u"\n',
    );
    const open = await cli('check', '--config', 'anonymous.toml', '--strict');
    expect([open.code, open.stderr]).toEqual([
      1,
      expect.stringContaining('turnstile.auth_required: false: whoever'),
    ]);
    const closed = await cli('check', '--config', 'anonymous.toml', '--strict', '--auth-required');
    expect([closed.code, closed.stdout]).toEqual([
      0,
      expect.stringContaining('anonymous_role: has no effect while auth_required is true'),
    ]);
  });

  test('missing files are warnings, as with PgDog', async () => {
    const { code, stdout } = await cli('check', '-c', 'no.toml', '-u', 'nope.toml');
    expect(code).toBe(0);
    expect(stdout).toContain('warning: no.toml: the file does not exist; defaults are used\n');
  });
});

describe('run', () => {
  test('logs one line with the address, drains on SIGTERM and ends well', async () => {
    const child = start([]);
    const { code, stdout } = await outcome(child, ['listening', 'SIGTERM']);
    expect(code).toBe(0);
    expect(stdout).toMatch(/ INFO {2}listening host=0\.0\.0\.0 port=5555 pid=\d+\n/);
    expect(stdout).toMatch(/draining signal=SIGTERM/);
  });

  test('the port and host of the command line beat the file', async () => {
    const child = start(['run', '--port', '7001', '--host', '127.0.0.2']);
    const { code, stdout } = await outcome(child, ['listening', 'SIGINT']);
    expect([code, stdout.includes('listening host=127.0.0.2 port=7001')]).toEqual([0, true]);
  });

  test('a second signal ends at once though the first is still draining', async () => {
    const child = start(['run', '--port', '8001']);
    const { code, stdout } = await outcome(child, ['listening', 'SIGTERM'], ['draining', 'SIGINT']);
    expect([code, stdout.includes('destroyed')]).toEqual([1, true]);
  });

  test('a drain that fails destroys, and says so', async () => {
    const child = start(['run', '--port', '8002']);
    const { code, stdout } = await outcome(child, ['listening', 'SIGTERM']);
    expect([code, stdout.includes('draining failed'), stdout.includes('destroyed')]).toEqual([1, true, true]);
  });

  test.each([
    ['a port in use', '9001', 3],
    ['a port that is not allowed', '9002', 3],
    ['any other trouble', '9003', 1],
  ])('%s: exit code', async (_name, port, expected) => {
    const { code, stdout } = await cli('run', '--port', port);
    expect(code).toBe(expected);
    expect(stdout).toMatch(expected === 3 ? /FATAL cannot listen/ : /FATAL cannot start/);
  });

  test('a bad configuration does not start', async () => {
    write('work/bad2.toml', '[general]\nport = -1\n');
    const { code, stderr } = await cli('--config', 'bad2.toml');
    expect([code, stderr.includes('bad2.toml:2: general.port: must be at least 0')]).toEqual([1, true]);
  });
});

describe('demo', () => {
  test('hands on its options and its exit code', async () => {
    const once = await cli('demo', '--once', '--port', '0', '--log-level', 'debug');
    expect([once.code, JSON.parse(once.stdout)]).toEqual([
      0,
      { once: true, port: 0, level: 'debug', pooler: 'startWorker' },
    ]);
    const failed = await cli('demo');
    expect([failed.code, JSON.parse(failed.stdout)]).toEqual([
      1,
      { once: false, level: 'warn', pooler: 'startWorker' },
    ]);
  });
});

describe('token', () => {
  test('mint: claims are JSON where they parse and text elsewhere, dots nest', async () => {
    const { code, stdout } = await cli(
      ...[
        'token',
        'mint',
        '--key',
        'key.pem',
        '--sub',
        'alice',
        '--ttl',
        '1h',
        '--aud',
        'app',
        '--kid',
        'k1',
      ],
      ...[
        '--claim',
        'db.role=reader',
        '--claim',
        'db.level=3',
        '--claim',
        'groups=["a"]',
        '--claim',
        'x=a=b',
      ],
      ...['--claim', 'empty=', '--claim', 'constructor.y=true'],
    );
    expect([code, JSON.parse(stdout)]).toEqual([
      0,
      {
        subject: 'alice',
        ttlSeconds: 3600,
        audience: 'app',
        keyId: 'k1',
        claims: {
          db: { role: 'reader', level: 3 },
          groups: ['a'],
          x: 'a=b',
          empty: '',
          constructor: { y: true },
        },
        fresh: true,
      },
    ]);
  });

  test('mint: a type of its own', async () => {
    const { stdout } = await cli('token', 'mint', '--key', 'key.pem', '--sub', 'a', '--typ', 'at+jwt');
    expect(JSON.parse(stdout)).toMatchObject({ type: 'at+jwt' });
  });

  test('mint: five minutes unless told otherwise', async () => {
    const { stdout } = await cli('token', 'mint', '--key', 'key.pem', '--sub', 'a');
    expect(JSON.parse(stdout)).toEqual({ subject: 'a', ttlSeconds: 300, fresh: true });
  });

  test('mint: a key that is missing or none is bad input, said in one sentence', async () => {
    const missing = await cli('token', 'mint', '--key', 'nowhere.pem', '--sub', 'a');
    expect(missing).toEqual({
      code: 1,
      stdout: '',
      stderr: 'pgturnstile: the key nowhere.pem cannot be read (ENOENT)\n',
    });
    const wrong = await cli('token', 'mint', '--key', 'pgdog.toml', '--sub', 'a');
    expect(wrong).toEqual({ code: 1, stdout: '', stderr: 'pgturnstile: not a private key\n' });
  });

  test('explain: from an argument, from standard input by - or by nothing; refused is exit code 1', async () => {
    const argument = await cli('token', 'explain', 'good', '--database', 'app');
    expect([argument.code, argument.stdout]).toEqual([0, 'token of 4\ndatabase app\nscram\n']);
    for (const args of [['-'], []]) {
      const child = start(['token', 'explain', ...args]);
      child.stdin!.end('good\r\n');
      expect((await outcome(child)).code).toBe(0);
    }
    expect(await cli('token', 'explain', 'evil-token')).toEqual({
      code: 1,
      stdout: 'token of 10\ndatabase null\nscram\n',
      stderr: '',
    });
  });

  test('explain: no token, and far too much of one', async () => {
    const empty = start(['token', 'explain', '-']);
    empty.stdin!.end(' \n');
    expect(await outcome(empty)).toMatchObject({
      code: 1,
      stderr: 'pgturnstile: there is no token to explain\n',
    });
    const long = start(['token', 'explain', '-']);
    long.stdin!.on('error', () => {}).end('x'.repeat(200_000));
    expect(await outcome(long)).toMatchObject({ code: 1, stderr: expect.stringContaining('too long') });
  });
});
