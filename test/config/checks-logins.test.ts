/** Login rules, client certificates and anonymous users: what must be refused or called out, and what must not. */
import { describe } from 'vitest';
import { makeCertificate } from '../support/certificates.ts';
import { DATABASE, type Given, runCases, USER } from './support.ts';

const GENERAL = '[general]\nhost = "127.0.0.1"\n';
const rule = (text: string): string => `[[turnstile.login_rules]]\n${text}\n`;
const ISSUER =
  '[[turnstile.issuers]]\nissuer = "https://id.example.com"\ndiscovery = true\naudiences = ["app"]\n';
const certificate = makeCertificate({ name: 'localhost' });
const authority = makeCertificate({ name: 'ca', authority: true });
const files = { 's.crt': certificate.cert, 's.key': certificate.key, 'ca.crt': authority.cert };
const TLS = 'tls_certificate = "s.crt"\ntls_private_key = "s.key"\n';
const CA = 'tls_client_ca_certificate = "ca.crt"\n';

const with_ = (rows: string, more: Partial<Given> = {}): Given => ({
  main: `${GENERAL}${rows}${DATABASE}`,
  ...more,
});

describe('login rules', () => {
  runCases([
    {
      name: 'tokens for people, SCRAM for services, the rest refused',
      ...with_(
        ISSUER +
          rule('user = "/svc_.*"\naddress = ["10.0.0.0/8", "fd00::/8", "::1"]\nmethod = "scram"') +
          rule('database = "app"\nmethod = "jwt"') +
          rule('method = "reject"'),
      ),
    },
    {
      name: 'addresses that are none',
      ...with_(
        rule(
          'address = ["10.0.0.0/33", "::1/129", "10.0.0/8", "fe80::1%eth0", "1.2.3.4/", "1.2.3.4/8/8", "all", "db"]\nmethod = "scram"',
        ),
      ),
      faults: [
        '"10.0.0.0/33" must have a length from 0 to 32',
        '"::1/129" must have a length from 0 to 128',
        '"10.0.0/8" must be an address',
        '"fe80::1%eth0" must be an address',
        '"1.2.3.4/" must have a length',
        '"1.2.3.4/8/8" must be an address',
        '"all" is no address; leave the key out',
        '"db" must be an address',
      ],
    },
    {
      name: 'a user that is no expression, databases that are not there',
      ...with_(rule('user = "/("\ndatabase = ["app", "admin", "ap", "all"]\nmethod = "scram"')),
      faults: [
        'user: "/(" is no regular expression',
        'database: there is no database "ap"; did you mean "app"?',
        'database: there is no database "all"; leave the key out for all',
      ],
    },
    {
      name: 'tokens without an issuer',
      ...with_(rule('user = "x"\nmethod = "jwt"')),
      faults: [
        'pgdog.toml:5: turnstile.login_rules[0].method: jwt needs jwt_public_key_file, jwt_jwks_url or a row',
      ],
    },
    {
      name: 'rules behind one that takes everybody',
      ...with_(rule('method = "scram"') + rule('user = "a"\nmethod = "md5"')),
      warnings: ['turnstile.login_rules[1].method: has no effect: turnstile.login_rules[0] fits'],
    },
    {
      name: 'a narrower rule first is reached',
      ...with_(rule('user = "a"\ntls = "on"\nmethod = "md5"') + rule('user = ["a", "b"]\nmethod = "scram"'), {
        main: `${GENERAL}${TLS}${rule('user = "a"\ntls = "on"\nmethod = "md5"')}${rule('user = ["a", "b"]\nmethod = "scram"')}${DATABASE}`,
        files,
      }),
    },
    {
      name: 'trust',
      ...with_(rule('address = "127.0.0.1"\nmethod = "trust"')),
      warnings: ['turnstile.login_rules[0].method: trust asks nobody for a proof'],
    },
    {
      name: 'trust by auth_type that no client ever meets',
      main: `[general]\nauth_type = "trust"\n${rule('method = "scram"')}${DATABASE}`,
    },
    {
      name: 'passwords as they are from the network',
      main: `${rule('address = "10.0.0.0/8"\nmethod = "plain"')}${rule('address = ["127.0.0.1", "::1"]\nmethod = "plain"')}${DATABASE}`,
      warnings: ['turnstile.login_rules[0].method: plain sends passwords as they are; set tls = "on"'],
    },
    {
      name: 'TLS in a rule where there is none, and the other way round',
      ...with_(rule('tls = "on"\nmethod = "scram"')),
      warnings: ['login_rules[0].tls: on, but there is no tls_certificate'],
    },
    {
      name: 'no TLS in a rule where it is required',
      main: `${GENERAL}${TLS}tls_client_required = true\n${rule('tls = "off"\nmethod = "scram"')}${DATABASE}`,
      files,
      warnings: ['login_rules[0].tls: off, but tls_client_required is true'],
    },
    {
      name: 'a token without TLS where that never is permitted',
      main: `${GENERAL}${TLS}[turnstile]\nallow_plaintext_tokens = "never"\n${ISSUER}${rule('tls = "off"\nmethod = "jwt"')}${DATABASE}`,
      files,
      faults: ['login_rules[0].method: jwt without TLS, which allow_plaintext_tokens never permits'],
    },
    {
      name: 'the console by a token needs a claim, and knows no other method',
      ...with_(
        ISSUER +
          rule('database = "admin"\naddress = "10.1.0.0/16"\nmethod = "jwt"') +
          rule('database = "admin"\naddress = "10.2.0.0/16"\nmethod = "trust"'),
      ),
      faults: ['login_rules[0].method: jwt needs admin_claim'],
      warnings: ['login_rules[1].method: has no effect: the console'],
    },
    {
      name: 'the console by a token with a claim',
      main: `${GENERAL}[turnstile]\nadmin_claim = "pooler_admin"\n${ISSUER}${rule('database = "admin"\nmethod = "jwt"')}${DATABASE}`,
    },
  ]);
});

describe('OAUTHBEARER', () => {
  const oauth = rule('method = "oauth"');
  runCases([
    { name: 'sends clients to the first issuer', ...with_(ISSUER + oauth) },
    {
      name: 'has nowhere to send them',
      main: `${GENERAL}jwt_jwks_url = "https://id.example.com/jwks"\njwt_audience = "a"\n${oauth}${DATABASE}`,
      faults: ['turnstile.login_rules[0].method: oauth needs oauth_issuer or a row'],
    },
    {
      name: 'would send them to what has no document',
      ...with_(
        ISSUER.replace(
          'https://id.example.com"\ndiscovery = true',
          'accounts"\njwks_url = "https://id.example.com/jwks"',
        ) + oauth,
      ),
      faults: [
        'turnstile.issuers[0].issuer: must be an https:// URL; clients of method oauth are sent to it',
      ],
    },
    {
      name: 'would send them over http',
      ...with_(`[turnstile]\noauth_issuer = "http://id.example.com"\n${ISSUER}${oauth}`),
      faults: ['turnstile.oauth_issuer: must be https'],
    },
    {
      name: 'would send them to the issuer that is pinned, which has no document',
      main: `${GENERAL}jwt_jwks_url = "https://id.example.com/jwks"\njwt_audience = "a"\n[turnstile]\njwt_issuer = "accounts"\n${oauth}${DATABASE}`,
      faults: ['turnstile.jwt_issuer: must be an https:// URL; clients of method oauth'],
    },
    {
      name: 'is offered to nobody',
      ...with_(
        `[turnstile]\noauth_issuer = "https://id.example.com"\noauth_scope = "x"\n${ISSUER}${rule('method = "jwt"')}`,
      ),
      warnings: ['oauth_issuer: has no effect without', 'oauth_scope: has no effect without'],
    },
  ]);
});

describe('client certificates', () => {
  const identity = `${USER}identity = "svc.example.com"\n`;
  const main = (rows: string, keys = TLS + CA): string => `${GENERAL}${keys}${rows}${DATABASE}`;
  runCases([
    {
      name: 'a user with an identity logs in by it',
      main: main(rule('method = "cert"')),
      users: identity,
      files,
    },
    {
      name: 'nothing to check certificates against',
      main: main(rule('method = "cert"'), TLS),
      users: identity,
      files,
      faults: ['login_rules[0].method: cert needs tls_client_ca_certificate'],
      warnings: ['users[0].identity: has no effect without tls_client_ca_certificate'],
    },
    {
      name: 'nobody with an identity, and no TLS to show it by',
      main: main(rule('tls = "off"\nmethod = "cert"')),
      files,
      faults: [
        'login_rules[0].tls: off, but a certificate',
        'login_rules[0].method: cert needs a user of users.toml',
      ],
    },
    {
      name: 'a certificate authority without TLS for clients',
      main: main('', CA),
      files,
      faults: ['general.tls_client_ca_certificate: needs tls_certificate'],
    },
    {
      name: 'a certificate authority that is none',
      main: main('', TLS + CA),
      files: { ...files, 'ca.crt': 'x' },
      faults: ['tls_client_ca_certificate: the file ca.crt is not PEM'],
    },
    {
      name: 'one identity for two users',
      main: main(''),
      users: `${identity}[[users]]\nname = "bob"\npassword = "p"\ndatabase = "app"\nidentity = "svc.example.com"\n`,
      files,
      faults: ['users[1].identity: is the identity of users[0] already'],
    },
    {
      name: 'one user with a row for each of two databases has one identity',
      main: `${main('')}[[databases]]\nname = "app2"\nhost = "h"\n`,
      users: identity + identity.replace('"app"', '"app2"'),
      files,
    },
    {
      name: 'a certificate that is required and cannot be had',
      main: `${GENERAL}${DATABASE}`,
      users: `[[users]]\nname = "b"\npassword = "p"\ndatabase = "app"\nidentity = "b"\ntls_client_certificate_required = true\n`,
      faults: [
        'users[0].tls_client_certificate_required: is true, but there is no tls_client_ca_certificate',
      ],
    },
    {
      name: 'a user needs no password where a certificate is asked for',
      main: main(rule('method = "cert"')),
      users: '[[users]]\nname = "svc"\ndatabase = "app"\nidentity = "svc.example.com"\n',
      files,
    },
    {
      name: 'a user needs one where only some addresses may show a certificate',
      main: main(rule('address = "10.0.0.0/8"\nmethod = "cert"') + rule('user = "other"\nmethod = "cert"')),
      users: '[[users]]\nname = "svc"\ndatabase = "app"\nidentity = "svc.example.com"\n',
      files,
    },
    {
      name: 'a user without a password where every rule for it asks for one',
      main: main(rule('user = "other"\nmethod = "cert"')),
      users: '[[users]]\nname = "svc"\ndatabase = "app"\nidentity = "svc.example.com"\n',
      files,
      faults: ['users[0].password: is missing, and auth_type scram needs one'],
    },
  ]);
});

describe('nobody has to prove anything', () => {
  const anonymous = (keys: string): string =>
    `${GENERAL}jwt_server_user = "auth"\n[turnstile]\n${keys}${DATABASE}`;
  const OPEN = 'auth_required = false\n';
  const weak = 'turnstile.auth_required: false: whoever says';
  runCases([
    {
      name: 'a role for guests',
      main: anonymous(`${OPEN}anonymous_role = "anon"\nanonymous_users = ["guest"]\n`),
      warnings: [weak],
    },
    {
      name: 'nobody to let in, and nobody to be',
      main: anonymous(OPEN),
      faults: [
        'auth_required: is false, but there is no anonymous_role',
        'auth_required: is false, but anonymous_users',
      ],
      warnings: [weak],
    },
    {
      name: 'a list that nothing opens',
      main: `${GENERAL}[turnstile]\nanonymous_role = "anon"\nanonymous_users = ["guest"]\n${DATABASE}`,
      warnings: [
        'anonymous_role: has no effect while auth_required is true',
        'anonymous_users: has no effect while auth_required is true',
      ],
    },
    ...['postgres', 'auth', 'admin', 'NONE', 'pg_monitor', 'a;b', 'x'.repeat(64)].map((role) => ({
      name: `the role ${role} is none for guests`,
      main: anonymous(`${OPEN}anonymous_role = "${role}"\nanonymous_users = ["guest"]\n`),
      faults: [/turnstile\.anonymous_role: .*(reserved|role_pattern|63 bytes)/],
      warnings: [weak],
    })),
    {
      name: 'guests who are somebody already',
      main: anonymous(`${OPEN}anonymous_role = "anon"\nanonymous_users = ["alice", "admin"]\n`),
      faults: ['anonymous_users: "admin" is the user of the admin console'],
      warnings: [weak, 'anonymous_users: "alice" is a user of users.toml too'],
    },
    {
      name: 'guests whose name stands for somebody else, and a role that has a proof of its own',
      main: anonymous(`${OPEN}anonymous_role = "alice"\nanonymous_users = ["jwt"]\n`),
      faults: [
        'anonymous_role: "alice" is a user of users.toml with a proof of its own',
        'anonymous_users: "jwt" is in placeholder_users',
      ],
      warnings: [weak],
    },
    {
      name: 'a role that is disabled',
      main: `${anonymous(`${OPEN}anonymous_role = "anon"\nanonymous_users = ["guest"]\n`)}[[turnstile.users]]\nname = "anon"\ndisabled = true\n`,
      faults: ['anonymous_role: "anon" is disabled in turnstile.users'],
      warnings: [weak, 'turnstile.users[0].name: has no effect'],
    },
    {
      name: 'nobody who could log in to PostgreSQL for them',
      main: `${GENERAL}[turnstile]\n${OPEN}anonymous_role = "anon"\nanonymous_users = ["guest"]\n${DATABASE}`,
      faults: ['anonymous_role: needs jwt_server_user'],
      warnings: [weak],
    },
  ]);
});
