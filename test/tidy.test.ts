/** What is cheap to hold about the source as a whole: its layers, its hot files, no dead file, no note to self. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));
const source = join(root, 'src');

/** From left to right: a file imports from its own group and from those before it. */
const LAYERS: string[][] = [
  ['base'],
  ['protocol', 'sql', 'config'],
  ['net', 'auth', 'session'],
  ['server'],
  ['client'],
  ['admin', 'provision'],
  ['worker.ts'],
  ['demo', 'main.ts'],
];
/** No promise and no wait on the path of every message. */
const HOT = [
  'net/wire.ts',
  'protocol/frames.ts',
  'session/prepared-statements.ts',
  'session/statement-names.ts',
  'server/server-connection.ts',
  'server/server-answers.ts',
  'server/frame-scanner.ts',
  'server/span-delivery.ts',
  'server/out-buffer.ts',
  'server/pending-responses.ts',
  'server/copy-syncs.ts',
  'client/relay.ts',
  'client/held-bytes.ts',
  'client/query-relay.ts',
  'client/statement-relay.ts',
  'client/statement-sender.ts',
  'client/statement-answers.ts',
  'client/unnamed-statement.ts',
  'client/effects-by-name.ts',
  'client/session-effects.ts',
  'client/claim-upkeep.ts',
  'server/carried-claims.ts',
  'client/request-record.ts',
];

/** Read by the test that compares keys, samples and README, and by nothing that runs. */
const FOR_TESTS = ['config/reference.ts'];

const files = readdirSync(source, { recursive: true, encoding: 'utf8' })
  .filter((name) => name.endsWith('.ts'))
  .sort();
const text = new Map(files.map((name) => [name, readFileSync(join(source, name), 'utf8')]));
/** The code without its comments; strings stay. */
const code = (name: string): string =>
  text
    .get(name)!
    .replaceAll(/\/\*[\s\S]*?\*\//g, '')
    .replaceAll(/^\s*\/\/.*$/gm, '');
const layerOf = (name: string): number => LAYERS.findIndex((group) => group.includes(name.split('/')[0]!));

/** Every relative import of every file; `runs` is false for types alone. */
const imports = files.flatMap((from) =>
  [
    ...code(from).matchAll(
      /(?:import|export)\s+(type\s)?([^;'"]*?)from\s+'(\.[^']+)'|import\('(\.[^']+)'\)/g,
    ),
  ].map(([, type, names, path, dynamic]) => {
    const to = relative(source, resolve(dirname(join(source, from)), path ?? dynamic!));
    const onlyTypes =
      /^\{[^}]*\}\s*$/.test(names ?? '') &&
      (names ?? '').split(',').every((name) => /^[\s{]*(type\s|[\s}]*$)/.test(name));
    return { from, to, runs: type === undefined && !onlyTypes };
  }),
);

describe('src', () => {
  test('is read by this test: imports were found', () => {
    expect(files.length).toBeGreaterThan(50);
    expect(imports.length).toBeGreaterThan(150);
    expect(imports.filter(({ to }) => !existsSync(join(source, to)))).toEqual([]);
  });

  test('has every file in a layer, and imports from left to right only', () => {
    expect(files.filter((name) => layerOf(name) < 0)).toEqual([]);
    expect(imports.filter(({ from, to }) => layerOf(to) > layerOf(from))).toEqual([]);
  });

  test('has no cycle among the files that need each other at run time', () => {
    const needs = new Map(
      files.map((name) => [name, imports.filter((i) => i.runs && i.from === name).map((i) => i.to)]),
    );
    const done = new Set<string>();
    const cycles: string[] = [];
    const visit = (name: string, path: string[]): void => {
      if (path.includes(name)) cycles.push([...path.slice(path.indexOf(name)), name].join(' → '));
      else if (!done.has(name)) for (const next of needs.get(name) ?? []) visit(next, [...path, name]);
      done.add(name);
    };
    for (const name of files) visit(name, []);
    expect(cycles).toEqual([]);
  });

  test('has no file that nothing needs', () => {
    const wanted = new Set(imports.map(({ to }) => to));
    const manifest =
      readFileSync(join(root, 'package.json'), 'utf8') +
      (existsSync(join(root, 'Dockerfile')) ? readFileSync(join(root, 'Dockerfile'), 'utf8') : '');
    const entry = (name: string): boolean => manifest.includes(`dist/${name.replace(/\.ts$/, '.js')}`);
    expect(files.filter((name) => !wanted.has(name) && !entry(name) && !FOR_TESTS.includes(name))).toEqual(
      [],
    );
  });

  test.each(HOT)('%s has no await, no async and no promise', (name) => {
    expect(code(name).match(/\bawait\b|\basync\b|\.then\(|\bnew Promise\b/g) ?? []).toEqual([]);
  });

  test('opens every file with a comment that says what it is for', () => {
    expect(files.filter((name) => !/^(#!.*\n)?\/\*\*/.test(text.get(name)!))).toEqual([]);
  });

  test('has no note to self, no default export and no switched-off type check', () => {
    const marks = /\bTODO\b|\bFIXME\b|\bXXX\b|@ts-ignore|@ts-nocheck|^export default/m;
    expect(files.filter((name) => marks.test(text.get(name)!))).toEqual([]);
  });

  test('gives every exported constant with a limit a number that is one', () => {
    const limits = files.flatMap((name) =>
      [...code(name).matchAll(/^export const (\w+_(?:MAX|MIN))\b[^=]*=\s*([^;]+);/gm)].map((match) => [
        name,
        match[1],
        match[2],
      ]),
    );
    expect(limits.length).toBeGreaterThan(3);
    expect(limits.filter(([, , value]) => !/^[\w\s.*+()&-]+$/.test(value!))).toEqual([]);
  });
});
