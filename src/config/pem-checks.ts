/**
 * Looks into the PEM files that a configuration names: are they there, are they what they should be, do they fit
 * together. Knows node:crypto and no key of the configuration; findings go to the caller's functions.
 */
import { createPrivateKey, createPublicKey, type KeyObject, X509Certificate } from 'node:crypto';
import { readingProblem, readText } from './config-file.ts';

type Report = (message: string) => void;

const PEM_BYTES_MAX = 1024 * 1024;
/** RFC 7518, sections 3.3 and 3.5. */
const RSA_BITS_MIN = 2048;
/** Verifying takes longer with the square of the size. */
const RSA_BITS_MAX = 8192;

/** A certificate and its private key; `name` is the key of the configuration that gives the certificate. */
export function checkCertificatePair(
  name: string,
  certificateFile: string,
  keyFile: string,
  nowMs: number,
  report: { certificate: Report; key: Report; warn: Report },
): void {
  const certificate = readPem(certificateFile, report.certificate, (text) => new X509Certificate(text));
  const key = readPem(keyFile, report.key, (text) => createPrivateKey(text));
  if (certificate === null || key === null) return;
  if (!certificate.checkPrivateKey(key)) report.key(`is not the key of ${name}`);
  if (Date.parse(certificate.validTo) < nowMs) report.warn(`expired on ${certificate.validTo}`);
}

/** A file with at least one certificate. */
export function checkCaFile(file: string, report: Report): void {
  readPem(file, report, (text) => new X509Certificate(text));
}

/** A public key that one of the algorithms can use. */
export function checkPublicKeyFile(file: string, algorithms: readonly string[], report: Report): void {
  const key = readPem(file, report, (text) => {
    // createPublicKey would take a private key and derive the public one; a pooler must not even hold it.
    if (/-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(text)) {
      report('holds a private key; give the public one only');
      return null;
    }
    if (/-----BEGIN [A-Z0-9 ]*CERTIFICATE-----/.test(text)) {
      report('holds a certificate; give its public key (openssl x509 -pubkey -noout)');
      return null;
    }
    if ((text.match(/-----BEGIN /g) ?? []).length > 1) {
      report('holds more than one PEM block; one key is expected');
      return null;
    }
    return createPublicKey(text);
  });
  if (key === null) return;
  const bits = key.asymmetricKeyDetails?.modulusLength;
  if (bits !== undefined && bits < RSA_BITS_MIN) {
    report(`is an RSA key of ${bits} bits; at least ${RSA_BITS_MIN} are needed`);
  } else if (bits !== undefined && bits > RSA_BITS_MAX) {
    report(`is an RSA key of ${bits} bits; ${RSA_BITS_MAX} are the most`);
  } else if (!algorithms.some((algorithm) => fits(algorithm, key))) {
    report(`is a key that none of the algorithms (${algorithms.join(', ')}) can use`);
  }
}

/** True when the key is long enough and one of the algorithms can use it. */
export function isFitKey(key: KeyObject, algorithms: readonly string[]): boolean {
  const bits = key.asymmetricKeyDetails?.modulusLength ?? RSA_BITS_MIN;
  return bits >= RSA_BITS_MIN && bits <= RSA_BITS_MAX && algorithms.some((algorithm) => fits(algorithm, key));
}

const CURVES: Readonly<Record<string, string>> = {
  ES256: 'prime256v1',
  ES384: 'secp384r1',
  ES512: 'secp521r1',
};

function fits(algorithm: string, key: KeyObject): boolean {
  const type = key.asymmetricKeyType;
  if (algorithm.startsWith('RS')) return type === 'rsa';
  if (algorithm.startsWith('PS')) return type === 'rsa' || type === 'rsa-pss';
  if (algorithm.startsWith('ES')) {
    return type === 'ec' && key.asymmetricKeyDetails?.namedCurve === CURVES[algorithm];
  }
  return type === 'ed25519';
}

function readPem<T>(file: string, report: Report, understand: (text: string) => T | null): T | null {
  let text: string;
  try {
    text = readText(file, PEM_BYTES_MAX);
  } catch (error) {
    report(`the file ${file}: ${readingProblem(error)}`);
    return null;
  }
  try {
    return understand(text);
  } catch {
    report(`the file ${file} is not PEM of the kind that belongs here (a key must not be encrypted)`);
    return null;
  }
}
