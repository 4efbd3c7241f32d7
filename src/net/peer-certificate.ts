/**
 * The certificate that a TLS client showed: the names in it, its digest, and whether OpenSSL found a chain from it
 * to `tls_client_ca_certificate`. It does not know whose certificate it ought to be.
 */
import { createHash, type X509Certificate } from 'node:crypto';
import type { TLSSocket } from 'node:tls';

export interface PeerCertificate {
  /** A chain leads to one of our authorities, and every certificate in it is valid now. */
  readonly verified: boolean;
  /** The subject's common name; null when it has none, or several. */
  readonly commonName: string | null;
  /** Subject alternative names of the kinds DNS, email and URI. */
  readonly alternativeNames: readonly string[];
  /** SHA-256 of the certificate in DER, base64url: `x5t#S256` (RFC 8705 section 3.1). */
  readonly thumbprint: string;
}

/** OpenSSL's verdict, which node:tls gives its own servers as `authorized` and a lone TLSSocket not at all. */
interface VerifyingHandle {
  verifyError?: () => Error | null | undefined;
}

/** The client's certificate; null when it showed none. To be asked once the handshake is over. */
export function peerCertificateOf(socket: TLSSocket): PeerCertificate | null {
  const certificate = socket.getPeerX509Certificate();
  if (certificate === undefined) return null;
  return {
    verified: isVerified(socket),
    commonName: commonNameOf(certificate),
    alternativeNames: readAlternativeNames(certificate.subjectAltName ?? ''),
    thumbprint: createHash('sha256').update(certificate.raw).digest('base64url'),
  };
}

function isVerified(socket: TLSSocket): boolean {
  const handle = (socket as unknown as { _handle?: VerifyingHandle | null })._handle;
  // Without a verdict there is no chain: a Node.js that hides it must not let anybody in.
  if (typeof handle?.verifyError !== 'function') return false;
  const error = handle.verifyError();
  return error === null || error === undefined;
}

/** From the parsed subject, never from its printed form, in which a value could pass for another attribute. */
function commonNameOf(certificate: X509Certificate): string | null {
  const { subject } = certificate.toLegacyObject();
  const name: unknown = subject?.CN;
  return typeof name === 'string' && name !== '' ? name : null;
}

/** One entry: its kind, then a value that is quoted as JSON whenever it could be read as more than one. */
const ENTRY = /([A-Za-z][A-Za-z ]*):("(?:[^"\\]|\\.)*"|[^",]*)(?:, |$)/y;
const KINDS = new Set(['DNS', 'email', 'URI']);

/**
 * The names in node:crypto's text for subject alternative names (`DNS:a, email:b, DNS:"c, DNS:d"`). The quotes are
 * what keeps one name from being read as two (CVE-2021-44532); text that is not wholly of this form has no names.
 */
export function readAlternativeNames(text: string): string[] {
  const names: string[] = [];
  ENTRY.lastIndex = 0;
  while (ENTRY.lastIndex < text.length) {
    const entry = ENTRY.exec(text);
    if (entry === null) return [];
    const [, kind = '', value = ''] = entry;
    const name = value.startsWith('"') ? unquote(value) : value;
    if (name === null) return [];
    if (KINDS.has(kind) && name !== '') names.push(name);
  }
  return names;
}

function unquote(value: string): string | null {
  try {
    return String(JSON.parse(value));
  } catch {
    return null;
  }
}
