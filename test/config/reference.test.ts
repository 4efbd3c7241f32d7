/**
 * The schema, the sample files and the README say the same. `UPDATE_REFERENCE=1` rewrites the README's part from
 * the schema instead of comparing.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parse } from 'smol-toml';
import { describe, expect, test } from 'vitest';
import { environmentName } from '../../src/config/env.ts';
import { type KeySpec, readValue } from '../../src/config/key-spec.ts';
import { loadConfig } from '../../src/config/load.ts';
import { insertReference, REFERENCE_BEGIN, REFERENCE_END } from '../../src/config/reference.ts';
import { SCHEMA, type SchemaSection } from '../../src/config/schema.ts';
import { UNSUPPORTED_KEYS, UNSUPPORTED_SECTIONS } from '../../src/config/unsupported.ts';

const fileOf = (name: string): string => fileURLToPath(new URL(`../../${name}`, import.meta.url));

interface SampleKey {
  section: string;
  key: string;
  literal: string;
  isCommented: boolean;
  line: number;
}

/** Every `key = value` of a sample file, commented out or not. */
function sampleKeys(name: string): SampleKey[] {
  const keys: SampleKey[] = [];
  let section = '';
  for (const [index, line] of readFileSync(fileOf(name), 'utf8').split('\n').entries()) {
    const header = /^(?:# )?\[{1,2}([a-z_.]+)\]{1,2}$/.exec(line);
    const pair = /^(# )?([a-z_]+) = (.+)$/.exec(line);
    if (header !== null) section = header[1]!;
    else if (pair !== null) {
      const [, comment, key, literal] = pair;
      keys.push({
        section,
        key: key!,
        literal: literal!,
        isCommented: comment !== undefined,
        line: index + 1,
      });
    }
  }
  return keys;
}

const ALL: [string, SchemaSection, KeySpec<unknown>][] = SCHEMA.flatMap((section) =>
  section.specs.map((spec): [string, SchemaSection, KeySpec<unknown>] => [
    `${section.name}.${spec.key}`,
    section,
    spec,
  ]),
);

describe('the schema', () => {
  test.each(ALL)('%s has a literal that its own kind accepts, and a sentence', (_name, _section, spec) => {
    const { value: raw } = parse(`value = ${spec.literal}`, { integersAsBigInt: 'asNeeded' });
    const result = readValue(spec.kind, raw);
    // An empty list of secrets or the default of a key with one must come back as it is.
    if (spec.defaultValue !== null && !spec.isRequired) expect(result).toEqual({ value: spec.defaultValue });
    else expect(result).toHaveProperty('value');
    expect(spec.meaning).toMatch(/^[A-Z].*\.$/);
  });

  test('no section has two keys of one name, aliases and file twins included', () => {
    for (const section of SCHEMA) {
      const names = section.specs.flatMap((spec) => [
        spec.key,
        ...(spec.alias === null ? [] : [spec.alias]),
        ...(spec.kind.name.startsWith('secret') ? [`${spec.key}_file`] : []),
      ]);
      expect(new Set(names).size).toBe(names.length);
      const foreign = Object.keys(UNSUPPORTED_KEYS[section.name] ?? {});
      expect(foreign.filter((name) => names.includes(name))).toEqual([]);
      expect(UNSUPPORTED_SECTIONS).not.toContain(section.name);
    }
  });

  test('only keys of [general] have extra environment names, and none of them is the ordinary one', () => {
    for (const [, section, spec] of ALL) {
      if (section.name !== 'general') expect(spec.extraEnv).toEqual([]);
      expect(spec.extraEnv).not.toContain(environmentName(spec.key));
    }
  });
});

describe('the sample files', () => {
  const samples = { 'pgdog.toml': sampleKeys('pgdog.toml'), 'users.toml': sampleKeys('users.toml') };

  test.each(
    ALL,
  )('%s stands in its file once, and a commented line shows its default', (_name, section, spec) => {
    const found = samples[section.file].filter((one) => one.section === section.name && one.key === spec.key);
    expect(found).toHaveLength(1);
    if (found[0]!.isCommented) expect(found[0]!.literal).toBe(spec.literal);
  });

  test('they hold no key that the schema does not have', () => {
    const known = new Set(ALL.map(([name]) => name));
    const strangers = Object.values(samples)
      .flat()
      .filter((one) => !known.has(`${one.section}.${one.key}`));
    expect(strangers).toEqual([]);
  });

  test('they load as they are, without a fault and without a warning', () => {
    const result = loadConfig({ configPath: fileOf('pgdog.toml'), usersPath: fileOf('users.toml'), env: {} });
    expect([result.faults, result.warnings]).toEqual([[], []]);
    expect(result.config).not.toBeNull();
  });
});

describe('README.md', () => {
  test('carries the reference that the schema renders', () => {
    const readme = readFileSync(fileOf('README.md'), 'utf8');
    const rendered = insertReference(readme);
    if (process.env['UPDATE_REFERENCE'] === '1') writeFileSync(fileOf('README.md'), rendered);
    else expect(readme).toBe(rendered);
    for (const [, , spec] of ALL) expect(rendered).toContain(`| \`${spec.key}\``);
  });

  test('a text without the markers is refused, not overwritten', () => {
    expect(() => insertReference('# x')).toThrow(RangeError);
    expect(() => insertReference(`${REFERENCE_END}${REFERENCE_BEGIN}`)).toThrow(RangeError);
  });
});
