/**
 * TLS towards PostgreSQL: the options of PgDog's four modes, and the channel binding data of a connection. It
 * knows neither sockets' lives nor the protocol around SSLRequest.
 */
import { createHash } from 'node:crypto';
import net from 'node:net';
import tls from 'node:tls';
import type { ServerTlsMode } from '../config/config.ts';

export interface ServerTls {
  mode: ServerTlsMode;
  /** PEM text (not a path) of the certificates to trust; null trusts the system's. */
  caCertificate: string | null;
  /** PEM texts of our own chain and its key, shown to a server that asks. Default: none. */
  clientCertificate?: { readonly chain: string; readonly key: string } | null;
}

/**
 * Starts TLS on a connected socket; the caller waits for 'secureConnect' or 'error'. `prefer` checks nothing,
 * `verify_ca` the chain, `verify_full` the chain and the name. Throws on a text that is not PEM.
 */
export function startServerTls(socket: net.Socket, host: string, options: ServerTls): tls.TLSSocket {
  const verify = options.mode === 'verify_ca' || options.mode === 'verify_full';
  return tls.connect({
    socket,
    // The name that the certificate must carry; an address is no server name (RFC 6066, section 3).
    host,
    ...(net.isIP(host) === 0 ? { servername: host } : {}),
    ALPNProtocols: ['postgresql'],
    rejectUnauthorized: verify,
    ...(verify && options.caCertificate !== null ? { ca: options.caCertificate } : {}),
    ...(options.clientCertificate
      ? { cert: options.clientCertificate.chain, key: options.clientCertificate.key }
      : {}),
    ...(options.mode === 'verify_ca' ? { checkServerIdentity: () => undefined } : {}),
  });
}

/** The certificate hash for SCRAM's channel binding; null without TLS or when the certificate defines none. */
export function channelBindingOf(socket: net.Socket | tls.TLSSocket): Buffer | null {
  if (!(socket instanceof tls.TLSSocket)) return null;
  const certificate = socket.getPeerX509Certificate();
  return certificate === undefined ? null : serverEndPoint(certificate.raw);
}

/** Signature algorithms by the hex of their OID, and the hash that RFC 5929, section 4.1 takes for each. */
const HASH_OF_SIGNATURE: ReadonlyMap<string, string> = new Map([
  ['2a864886f70d010104', 'sha256'], // md5WithRSAEncryption: MD5 and SHA-1 are replaced by SHA-256
  ['2a864886f70d010105', 'sha256'], // sha1WithRSAEncryption
  ['2a864886f70d01010e', 'sha224'],
  ['2a864886f70d01010b', 'sha256'],
  ['2a864886f70d01010c', 'sha384'],
  ['2a864886f70d01010d', 'sha512'],
  ['2a8648ce3d0401', 'sha256'], // ecdsa-with-SHA1
  ['2a8648ce3d040301', 'sha224'],
  ['2a8648ce3d040302', 'sha256'],
  ['2a8648ce3d040303', 'sha384'],
  ['2a8648ce3d040304', 'sha512'],
]);
const RSASSA_PSS = '2a864886f70d01010a';
/** Hashes that RSASSA-PSS parameters name (RFC 4055); without one it is SHA-1. */
const HASH_BY_OID: ReadonlyMap<string, string> = new Map([
  ['2b0e03021a', 'sha256'], // SHA-1
  ['608648016503040204', 'sha224'],
  ['608648016503040201', 'sha256'],
  ['608648016503040202', 'sha384'],
  ['608648016503040203', 'sha512'],
]);

/**
 * The `tls-server-end-point` channel binding of a certificate in DER (RFC 5929): its hash, by the hash function of
 * its own signature. Null when that is not defined (Ed25519, unknown algorithms) or the DER cannot be read.
 */
export function serverEndPoint(certificate: Buffer): Buffer | null {
  const hash = hashOfCertificate(certificate);
  return hash === null ? null : createHash(hash).update(certificate).digest();
}

/** Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { OID, parameters }, signature }. */
function hashOfCertificate(certificate: Buffer): string | null {
  const outer = derElement(certificate, 0x30);
  const signed = outer && derElement(outer.content, 0x30);
  const algorithm = signed && derElement(signed.after, 0x30);
  const oid = algorithm && derElement(algorithm.content, 0x06);
  if (!oid) return null;
  const name = oid.content.toString('hex');
  if (name !== RSASSA_PSS) return HASH_OF_SIGNATURE.get(name) ?? null;
  const parameters = derElement(oid.after, 0x30);
  if (!parameters) return null;
  const hash = derElement(parameters.content, 0xa0);
  if (!hash) return 'sha256';
  const identifier = derElement(hash.content, 0x30);
  const hashOid = identifier && derElement(identifier.content, 0x06);
  return (hashOid && HASH_BY_OID.get(hashOid.content.toString('hex'))) ?? null;
}

/** The first DER element, when it has this tag: its content and what comes after it. Null for anything else. */
function derElement(bytes: Buffer, tag: number): { content: Buffer; after: Buffer } | null {
  if (bytes.length < 2 || bytes[0] !== tag) return null;
  let start = 2;
  let length = bytes[1]!;
  if (length >= 0x80) {
    const width = length & 0x7f;
    if (width === 0 || width > 4 || bytes.length < 2 + width) return null;
    length = bytes.readUIntBE(2, width);
    start += width;
  }
  const end = start + length;
  if (end > bytes.length) return null;
  return { content: bytes.subarray(start, end), after: bytes.subarray(end) };
}
