/**
 * Makes X.509 certificates for tests, with nothing but node:crypto: a private CA and servers signed by it, or
 * self-signed ones. Just enough DER for TLS; keys live in memory only and nothing here ever expires in a repository.
 */
import { createPublicKey, generateKeyPairSync, type KeyObject, randomBytes, sign } from 'node:crypto';

export type SignatureHash = 'sha1' | 'sha224' | 'sha256' | 'sha384' | 'sha512';

export interface TestCertificate {
  readonly name: string;
  readonly der: Buffer;
  /** PEM, to be used as `cert` or `ca`. */
  readonly cert: string;
  /** PEM, PKCS #8. */
  readonly key: string;
  readonly privateKey: KeyObject;
}

export interface CertificateOptions {
  /** The common name, and a subject alternative name (DNS, or an IPv4 address). */
  name: string;
  /** Signed by this one; self-signed when absent. */
  issuer?: TestCertificate;
  authority?: boolean;
  keyType?: 'ec' | 'rsa' | 'ed25519';
  hash?: SignatureHash;
  /** Subject alternative names instead of `name`, each a GeneralName as `generalName` makes it. */
  alternativeNames?: Buffer[];
  /** Seconds from now to its end; default a day. */
  lifetimeSeconds?: number;
}

/** A subject alternative name of any content, also one that no authority should sign. */
export function generalName(kind: 'email' | 'dns' | 'uri', value: string): Buffer {
  return der({ email: 0x81, dns: 0x82, uri: 0x86 }[kind], Buffer.from(value));
}

/** Valid from an hour ago for one day. */
export function makeCertificate(options: CertificateOptions): TestCertificate {
  const keys = makeKeys(options.keyType ?? 'ec');
  const signer = options.issuer?.privateKey ?? keys;
  const hash = options.hash ?? 'sha256';
  const algorithm = signatureAlgorithm(signer, hash);
  const now = Date.now();
  const toBeSigned = sequence(
    der(0xa0, integer(Buffer.from([2]))),
    integer(Buffer.concat([Buffer.from([0x01]), randomBytes(8)])),
    algorithm,
    commonName(options.issuer?.name ?? options.name),
    sequence(utcTime(now - 3_600_000), utcTime(now + (options.lifetimeSeconds ?? 86_400) * 1_000)),
    commonName(options.name),
    createPublicKey(keys).export({ format: 'der', type: 'spki' }),
    der(
      0xa3,
      sequence(
        basicConstraints(options.authority ?? false),
        alternativeNames(options.alternativeNames ?? [nameEntry(options.name)]),
      ),
    ),
  );
  const signature = sign(signer.asymmetricKeyType === 'ed25519' ? null : hash, toBeSigned, signer);
  const certificate = sequence(toBeSigned, algorithm, bitString(signature));
  return {
    name: options.name,
    der: certificate,
    cert: pem(certificate),
    key: keys.export({ format: 'pem', type: 'pkcs8' }) as string,
    privateKey: keys,
  };
}

function makeKeys(type: 'ec' | 'rsa' | 'ed25519'): KeyObject {
  if (type === 'rsa') return generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
  if (type === 'ed25519') return generateKeyPairSync('ed25519').privateKey;
  return generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey;
}

const RSA_OIDS = { sha1: '05', sha224: '0e', sha256: '0b', sha384: '0c', sha512: '0d' } as const;
const ECDSA_OIDS = { sha1: '01', sha224: '0301', sha256: '0302', sha384: '0303', sha512: '0304' } as const;

function signatureAlgorithm(signer: KeyObject, hash: SignatureHash): Buffer {
  switch (signer.asymmetricKeyType) {
    case 'rsa':
      return sequence(oid(`2a864886f70d0101${RSA_OIDS[hash]}`), der(0x05));
    case 'ed25519':
      return sequence(oid('2b6570'));
    default:
      return sequence(oid(`2a8648ce3d04${ECDSA_OIDS[hash]}`));
  }
}

/** Tag, length, content. */
export function der(tag: number, ...content: Buffer[]): Buffer {
  const body = Buffer.concat(content);
  if (body.length < 0x80) return Buffer.concat([Buffer.from([tag, body.length]), body]);
  const length = Buffer.from(body.length.toString(16).padStart(body.length > 0xff ? 4 : 2, '0'), 'hex');
  return Buffer.concat([Buffer.from([tag, 0x80 | length.length]), length, body]);
}

export function sequence(...content: Buffer[]): Buffer {
  return der(0x30, ...content);
}

/** An object identifier from its encoded bytes in hex. */
export function oid(hex: string): Buffer {
  return der(0x06, Buffer.from(hex, 'hex'));
}

function integer(bytes: Buffer): Buffer {
  return der(0x02, bytes);
}

function bitString(bytes: Buffer): Buffer {
  return der(0x03, Buffer.from([0]), bytes);
}

function commonName(name: string): Buffer {
  return sequence(der(0x31, sequence(oid('550403'), der(0x0c, Buffer.from(name)))));
}

function utcTime(ms: number): Buffer {
  const digits = new Date(ms).toISOString().replaceAll(/[-:T]/g, '').slice(2, 14);
  return der(0x17, Buffer.from(`${digits}Z`));
}

function basicConstraints(authority: boolean): Buffer {
  const value = authority ? sequence(der(0x01, Buffer.from([0xff]))) : sequence();
  return sequence(oid('551d13'), der(0x01, Buffer.from([0xff])), der(0x04, value));
}

function nameEntry(name: string): Buffer {
  const isAddress = /^\d+\.\d+\.\d+\.\d+$/.test(name);
  return isAddress ? der(0x87, Buffer.from(name.split('.').map(Number))) : generalName('dns', name);
}

function alternativeNames(entries: Buffer[]): Buffer {
  return sequence(oid('551d11'), der(0x04, sequence(...entries)));
}

function pem(certificate: Buffer): string {
  const lines = certificate.toString('base64').replaceAll(/.{64}(?=.)/g, '$&\n');
  return `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`;
}
