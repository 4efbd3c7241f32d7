/** The examples in the documents are configurations that load: no fault, and no warning about what they show. */
import { generateKeyPairSync } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, test } from 'vitest';
import { decodeRevocations } from '../../src/auth/revocations.ts';
import { makeCertificate } from '../support/certificates.ts';
import { DATABASE, load } from './support.ts';

const textOf = (name: string): string =>
  readFileSync(fileURLToPath(new URL(`../../${name}`, import.meta.url)), 'utf8');

interface Example {
  name: string;
  text: string;
}

function examplesOf(name: string, language = 'toml'): Example[] {
  const found: Example[] = [];
  let heading = '';
  let block: string[] | null = null;
  for (const [index, line] of textOf(name).split('\n').entries()) {
    if (block === null && /^#+ /.test(line)) heading = line.replace(/^#+ /, '');
    if (line.trim() === `\`\`\`${language}`) block = [];
    else if (block !== null && line.trim() === '```') {
      found.push({ name: `${name}:${index + 1} ${heading}`, text: block.join('\n') });
      block = null;
    } else block?.push(line.replace(/^ {3}/, ''));
  }
  return found;
}

const server = makeCertificate({ name: 'localhost' });
const authority = makeCertificate({ name: 'ca', authority: true });
const issuerPem = generateKeyPairSync('ed25519').publicKey.export({ type: 'spki', format: 'pem' }) as string;
const files: Record<string, string> = {
  'server.crt': server.cert,
  'server.key': server.key,
  'pooler.crt': server.cert,
  'pooler.key': server.key,
  'ca.crt': authority.cert,
  'clients-ca.crt': authority.cert,
  'issuer.pem': issuerPem,
  'claims.key': '0123456789abcdef0123456789abcdef\n',
  'backend.key': '0123456789abcdef0123456789abcdef\n',
};
/** Doubts that an example may raise because it shows that very thing, or because it is not the whole file. */
const EXPECTED = [
  /general\.tls_certificate: is not set/,
  /turnstile\.auth_required: false: whoever says/,
  /turnstile\.database_claim_required: false/,
  /users\.toml: the file does not exist/,
];

describe.each(['README.md', 'docs/identity.md'])('%s', (name) => {
  const examples = examplesOf(name);
  test('has examples', () => {
    expect(examples.length).toBeGreaterThan(0);
  });

  test.each(examples)('$name', ({ text }) => {
    const isUsers = text.includes('[[users]]');
    const main = isUsers
      ? `[general]\ntls_certificate = "server.crt"\ntls_private_key = "server.key"\ntls_client_ca_certificate = "ca.crt"\n${DATABASE}`
      : text;
    // An example may leave out the database; one that names secrets in files of a real machine gets them here.
    const whole = (main.includes('[[databases]]') ? main : `${main}\n${DATABASE}`).replace(
      /"\/run\/secrets\/[a-z-]+"/g,
      '"claims.key"',
    );
    const users = isUsers
      ? text
      : '[[users]]\nname = "svc_billing"\npassword = "p"\ndatabase = "app"\nidentity = "billing.services.example.com"\n';
    const isIdle = (warning: string): boolean => /users\[0\]\.identity: has no effect/.test(warning);
    const { faults, warnings } = load({ main: whole, users, files });
    expect(faults).toEqual([]);
    expect(
      warnings.filter((warning) => !isIdle(warning) && !EXPECTED.some((doubt) => doubt.test(warning))),
    ).toEqual([]);
  });
});

test('the list of revoked tokens in the documents is one', () => {
  const examples = examplesOf('docs/identity.md', 'json');
  expect(examples).toHaveLength(1);
  expect(decodeRevocations(examples[0]!.text, 0).size).toBe(4);
});
