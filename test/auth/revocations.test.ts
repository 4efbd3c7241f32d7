/** The list of revocations: what it may hold, whom it strikes, and what happens when its file changes. */
import { mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { TokenFacts } from '../../src/auth/identity.ts';
import {
  decodeRevocations,
  REVOCATION_BYTES_MAX,
  REVOCATIONS_MAX,
  RevocationFile,
} from '../../src/auth/revocations.ts';
import { KeyFileFault } from '../../src/auth/watched-file.ts';
import { NOW_MS, NOW_SECONDS, verifiedAs } from './support.ts';

const IDP = 'https://idp.example';
const facts = (more: Partial<TokenFacts> = {}): TokenFacts =>
  verifiedAs(
    'alice',
    { claims: { iss: IDP, sub: 'alice', jti: 'j1', sid: 's1' } },
    {
      issuer: IDP,
      tokenId: 'j1',
      sessionId: 's1',
      keyId: 'k1',
      issuedAtMs: NOW_MS - 1_000,
      ...more,
    },
  ).facts;
const decode = (list: unknown) => decodeRevocations(JSON.stringify(list), NOW_MS);
const strikes = (entry: unknown, more: Partial<TokenFacts> = {}): boolean => decode([entry]).has(facts(more));

describe('whom an entry strikes', () => {
  test.each<[string, Record<string, unknown>, boolean]>([
    ['its jti', { jti: 'j1' }, true],
    ['another jti', { jti: 'j2' }, false],
    ['a jti in other letters', { jti: 'J1' }, false],
    ['its jti at its issuer', { jti: 'j1', iss: IDP }, true],
    ['its jti at another issuer', { jti: 'j1', iss: 'https://other' }, false],
    ['its jti at an issuer of a similar name', { jti: 'j1', iss: `${IDP}/` }, false],
    ['its sid', { sid: 's1' }, true],
    ['its kid', { kid: 'k1' }, true],
    ['its kid at another issuer', { kid: 'k1', iss: 'https://other' }, false],
    ['its jti given as a sid', { sid: 'j1' }, false],
    ['its subject, issued before', { sub: 'alice', before: NOW_SECONDS }, true],
    ['its subject, issued at that very second', { sub: 'alice', before: NOW_SECONDS - 1 }, false],
    ['its subject, issued after', { sub: 'alice', before: NOW_SECONDS - 2 }, false],
    ['its subject, as a date', { sub: 'alice', before: new Date(NOW_MS).toISOString() }, true],
    ['its subject, as a date elsewhere', { sub: 'alice', before: '2000-01-01T00:00:00+14:00' }, false],
    ['another subject', { sub: 'bob', before: NOW_SECONDS }, false],
    ['its jti until now, so no more', { jti: 'j1', exp: NOW_SECONDS }, false],
    ['its jti for another second', { jti: 'j1', exp: NOW_SECONDS + 1 }, true],
    ['a name from the prototype', { jti: 'constructor' }, false],
  ])('%s', (_what, entry, expected) => {
    expect(strikes(entry)).toBe(expected);
  });

  test('a token without iat counts as issued before', () => {
    expect(strikes({ sub: 'alice', before: 1 }, { issuedAtMs: null })).toBe(true);
  });

  test('an actor is struck as a subject is', () => {
    expect(strikes({ sub: 'agent', before: NOW_SECONDS }, { actor: 'agent' })).toBe(true);
  });

  test('a jti too long for the facts is found in the claims', () => {
    const jti = 'j'.repeat(5_000);
    expect(strikes({ jti }, { tokenId: null, claims: { jti } })).toBe(true);
  });

  test('of two entries for one subject the later counts, whatever their order', () => {
    const early = { sub: 'alice', before: 5 };
    const late = { sub: 'alice', before: NOW_SECONDS };
    expect(decode([early, late]).has(facts())).toBe(true);
    expect(decode([late, early]).has(facts())).toBe(true);
  });

  test('expired entries are dropped and counted', () => {
    expect(decode([{ jti: 'a', exp: 1 }, { jti: 'b' }])).toMatchObject({ size: 1, dropped: 1 });
  });
});

describe('what a list may hold', () => {
  test.each([
    ['not JSON', '{', /not JSON/],
    ['an object', '{}', /not a list/],
    ['null', 'null', /not a list/],
    ['an entry that is text', '["j1"]', /entry 0 .* is no object/],
    ['an entry of nothing', '[{}]', /exactly one of/],
    ['an issuer alone, which would be everybody', `[{"iss":"${IDP}"}]`, /exactly one of/],
    ['two kinds in one entry', '[{"jti":"a","sid":"b"}]', /exactly one of/],
    [
      'a misspelt member, which would strike too few',
      '[{"jti":"a"},{"jti":"a","Iss":"x"}]',
      /entry 1 .* unknown/,
    ],
    ['a number for an id', '[{"jti":5}]', /no non-empty string/],
    ['an empty id', '[{"sid":""}]', /no non-empty string/],
    ['sub without before', '[{"sub":"a"}]', /no before/],
    ['before without sub', '[{"jti":"a","before":5}]', /no sub/],
    ['before as a word', '[{"sub":"a","before":"now"}]', /no time/],
    ['before as a date without an offset', '[{"sub":"a","before":"2026-01-01T00:00:00"}]', /no time/],
    ['before as the 31st of February', '[{"sub":"a","before":"2026-02-41T00:00:00Z"}]', /no time/],
    ['before without end', '[{"sub":"a","before":1e999}]', /no time/],
    ['before null', '[{"sub":"a","before":null}]', /no time/],
    ['exp as a word', '[{"jti":"a","exp":"x"}]', /exp that is no time/],
    ['an issuer that is a list', '[{"jti":"a","iss":["x"]}]', /iss that is no string/],
  ])('%s is a fault', (_what, text, fault) => {
    expect(() => decodeRevocations(text, NOW_MS)).toThrow(fault);
    expect(() => decodeRevocations(text, NOW_MS)).toThrow(KeyFileFault);
  });

  test('one entry more than the bound is a fault', () => {
    const entries = Array.from({ length: REVOCATIONS_MAX }, () => ({ jti: 'a' }));
    expect(decode(entries).size).toBe(1);
    expect(() => decode([...entries, { jti: 'b' }])).toThrow(/more than 100000/);
  });
});

describe('the file', () => {
  let directory: string;
  let path: string;
  let nowMs = 0;
  let faults: string[] = [];
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), 'turnstile-revoked-'));
    path = join(directory, 'revoked.json');
    nowMs = 0;
    faults = [];
  });
  afterEach(() => rm(directory, { recursive: true }));
  const open = (): Promise<RevocationFile> =>
    RevocationFile.open({
      path,
      clock: () => nowMs,
      now: () => NOW_MS,
      onFault: (fault) => faults.push(fault),
    });

  test('a changed file counts at the next look; a bad one leaves the old list and is told once', async () => {
    await writeFile(path, '[]');
    const file = await open();
    expect(file.list.has(facts())).toBe(false);
    await writeFile(`${path}.new`, '[{"jti":"j1"}]');
    await rename(`${path}.new`, path);
    await file.poll();
    expect(file.list.has(facts())).toBe(false);
    nowMs = 1_000;
    await file.poll();
    expect(file.list.has(facts())).toBe(true);
    await writeFile(path, '[{"jti":');
    for (nowMs = 2_000; nowMs < 5_000; nowMs += 1_000) await file.poll();
    expect(file.list.has(facts())).toBe(true);
    await rm(path);
    await file.poll();
    nowMs += 1_000;
    await file.poll();
    expect(file.list.has(facts())).toBe(true);
    expect(faults).toEqual([
      'the revocation file is not JSON',
      'the revocation file cannot be read (ENOENT)',
    ]);
    await writeFile(path, '[]');
    nowMs += 1_000;
    await file.poll();
    expect(file.list.has(facts())).toBe(false);
  });

  test('at the start a missing, bad or too large file is a fault', async () => {
    await expect(open()).rejects.toThrow('cannot be read (ENOENT)');
    await writeFile(path, 'no');
    await expect(open()).rejects.toThrow('not JSON');
    await writeFile(path, '[]'.padEnd(REVOCATION_BYTES_MAX + 1));
    await expect(open()).rejects.toThrow('longer than 1024 KiB');
    await writeFile(path, '[]'.padEnd(REVOCATION_BYTES_MAX));
    await expect(open()).resolves.toBeInstanceOf(RevocationFile);
  });
});
