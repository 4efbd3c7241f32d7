/** The channel binding data of certificates: every signature algorithm, and DER that is none. */
import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { serverEndPoint } from '../../src/server/server-tls.ts';
import { type CertificateOptions, der, makeCertificate, oid, sequence } from '../support/certificates.ts';

const PSS = '2a864886f70d01010a';

/** A certificate's frame with this signature algorithm; what is signed does not matter here. */
function withAlgorithm(...algorithm: Buffer[]): Buffer {
  return sequence(
    sequence(der(0x02, Buffer.alloc(200, 1))),
    sequence(...algorithm),
    der(0x03, Buffer.from([0])),
  );
}

function pss(hashOid: string | null): Buffer {
  const parameters = hashOid === null ? sequence() : sequence(der(0xa0, sequence(oid(hashOid), der(0x05))));
  return withAlgorithm(oid(PSS), parameters);
}

describe('tls-server-end-point', () => {
  const CASES: [CertificateOptions['keyType'] & string, CertificateOptions['hash'] & string, string][] = [
    ['ec', 'sha256', 'sha256'],
    ['ec', 'sha384', 'sha384'],
    ['ec', 'sha512', 'sha512'],
    ['ec', 'sha224', 'sha224'],
    ['ec', 'sha1', 'sha256'],
    ['rsa', 'sha256', 'sha256'],
    ['rsa', 'sha384', 'sha384'],
    ['rsa', 'sha512', 'sha512'],
    ['rsa', 'sha1', 'sha256'],
  ];
  test.each(CASES)('a certificate of %s with %s is hashed with %s', (keyType, hash, expected) => {
    const { der: certificate } = makeCertificate({ name: 'db', keyType, hash });
    expect(serverEndPoint(certificate)).toEqual(createHash(expected).update(certificate).digest());
  });

  test.each([
    ['no parameters, which means SHA-1', null, 'sha256'],
    ['SHA-1', '2b0e03021a', 'sha256'],
    ['SHA-384', '608648016503040202', 'sha384'],
  ])('RSASSA-PSS takes the hash from its parameters: %s', (_name, hashOid, expected) => {
    const certificate = pss(hashOid);
    expect(serverEndPoint(certificate)).toEqual(createHash(expected).update(certificate).digest());
  });

  test('MD5 is replaced by SHA-256', () => {
    const certificate = withAlgorithm(oid('2a864886f70d010104'), der(0x05));
    expect(serverEndPoint(certificate)).toEqual(createHash('sha256').update(certificate).digest());
  });

  test.each([
    ['Ed25519, which names no hash', makeCertificate({ name: 'db', keyType: 'ed25519' }).der],
    ['RSASSA-PSS with an unknown hash', pss('2a0304')],
    ['RSASSA-PSS without parameters', withAlgorithm(oid(PSS))],
    ['nothing', Buffer.alloc(0)],
    ['an endless length', Buffer.from('3084ffffffff', 'hex')],
    ['an indefinite length', Buffer.from('3080000000', 'hex')],
    ['a length of nine bytes', Buffer.from('3089000000000000000001', 'hex')],
  ])('there is none for %s', (_name, certificate) => {
    expect(serverEndPoint(certificate)).toBeNull();
  });

  test('a certificate cut at any byte has none, and never throws', () => {
    const { der: certificate } = makeCertificate({ name: 'db' });
    for (let end = 0; end < certificate.length; end++) {
      expect(serverEndPoint(certificate.subarray(0, end)), `cut at ${end}`).toBeNull();
    }
  });
});
