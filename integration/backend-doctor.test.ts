/** `pgturnstile doctor` against real PostgreSQL: a set-up as it is printed is fine, and each fault is found and named. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ScramKeys } from '../src/auth/scram-keys.ts';
import type { BackendIdentity } from '../src/config/config.ts';
import { runDoctor } from '../src/provision/doctor.ts';
import type { DoctorReport } from '../src/provision/doctor-report.ts';
import { makeCertificate } from '../test/support/certificates.ts';
import {
  type BackendWorld,
  COMMON_NAME,
  GROUP,
  IDENTITIES,
  makeBackendWorld,
  roleOf,
  SERVICE,
} from './support/backend-world.ts';
import { cleanUp, newPassword, scratchFile, type Table } from './support/login-support.ts';

let world: BackendWorld;
beforeAll(async () => {
  world = await makeBackendWorld();
});
afterAll(async () => {
  cleanUp();
  await world?.postgres.stop();
});

interface Asked {
  general?: Table;
  turnstile?: Table;
  roles?: string[];
}

function examine(
  identity: BackendIdentity,
  { general, turnstile, roles = [] }: Asked = {},
): Promise<DoctorReport> {
  const { config } = world.config(identity, general, turnstile);
  return runDoctor({ config, database: null, roles, scramKeys: new ScramKeys() });
}

const wrongs = (report: DoctorReport): string[] =>
  report.findings.filter(({ level }) => level === 'wrong').map(({ text }) => text);

/** Changes something for one examination. */
async function during(change: string[], undo: string[], look: () => Promise<void>): Promise<void> {
  await world.asSuperuser(...change);
  try {
    await look();
  } finally {
    await world.asSuperuser(...undo);
  }
}

describe('what was provisioned as printed', () => {
  it.each(IDENTITIES)('%s: nothing is wrong, and the escapes were tried', async (identity) => {
    // The doctor finds a role by itself where the service user or the group leads to one.
    const roles = identity === 'login_password' ? [roleOf('alice', identity)] : [];
    const report = await examine(identity, { roles });
    expect(wrongs(report)).toEqual([]);
    expect(report.healthy).toBe(true);
    const text = report.lines().join('\n');
    expect(text).toContain('PostgreSQL 18');
    expect(text).toContain('TLS');
    expect(text).toContain('tokens are taken from named issuers');
    if (identity === 'set_role') {
      expect(text).toMatch(/at PostgreSQL \d+ statements leave the role/);
      expect(text).toContain(
        `whoever can send any SQL under set_role can become each of the roles granted to "${SERVICE}"`,
      );
    } else {
      expect(text).toContain('no statement tried leaves the role');
    }
    // No secret.
    const { config } = world.config(identity);
    expect(text).not.toContain(config.jwt.serverPassword!.reveal());
    expect(text).not.toContain(config.turnstile.backendPasswordKey!.reveal());
    // Nothing stays.
    const rows = await world.asSuperuser(
      `SELECT 1 FROM pg_stat_activity WHERE usename IN ('${SERVICE}', '${roleOf('alice', identity)}')`,
    );
    expect(rows.length).toBeLessThanOrEqual(1);
  });
});

describe('the service user of set_role', () => {
  it.each([
    ['SUPERUSER', 'NOSUPERUSER', 'is SUPERUSER'],
    ['BYPASSRLS', 'NOBYPASSRLS', 'is BYPASSRLS'],
    ['CREATEROLE', 'NOCREATEROLE', 'is CREATEROLE'],
    ['REPLICATION', 'NOREPLICATION', 'is REPLICATION'],
  ])('%s is wrong', async (attribute, undo, part) => {
    await during([`ALTER ROLE ${SERVICE} ${attribute}`], [`ALTER ROLE ${SERVICE} ${undo}`], async () => {
      const report = await examine('set_role');
      expect(wrongs(report).join('\n')).toContain(part);
      expect(report.lines().join('\n')).toContain(`fix: ALTER ROLE ${SERVICE} ${undo}`);
    });
  });

  it('rights that it has without becoming anybody, that it may grant on, and a way to a privileged role are wrong', async () => {
    await during(
      [
        'CREATE ROLE boss BYPASSRLS',
        'CREATE ROLE rich',
        `GRANT boss TO ${SERVICE} WITH SET TRUE`,
        `GRANT rich TO ${SERVICE} WITH INHERIT TRUE, ADMIN TRUE`,
      ],
      ['DROP ROLE boss', 'DROP ROLE rich'],
      async () => {
        const text = wrongs(await examine('set_role')).join('\n');
        expect(text).toContain('has the rights of "rich" without becoming it');
        expect(text).toContain('may grant "rich" to others');
        expect(text).toContain('can become "boss", which is privileged');
      },
    );
  });

  it('a way to the programs of the server is wrong, over any number of roles', async () => {
    const alice = roleOf('alice', 'set_role');
    await during(
      [`GRANT pg_execute_server_program TO ${alice}`],
      [`REVOKE pg_execute_server_program FROM ${alice}`],
      async () => {
        expect(wrongs(await examine('set_role')).join('\n')).toContain(
          'can become "pg_execute_server_program"',
        );
      },
    );
  });

  it('a role that it cannot become is wrong, with the command that prints the grant', async () => {
    const report = await examine('set_role', { roles: [roleOf('alice', 'login_map')] });
    expect(wrongs(report)[0]).toContain('cannot log in: permission denied to set role');
    expect(report.lines().join('\n')).toContain(
      `fix: pgturnstile sql provision --role ${roleOf('alice', 'login_map')}`,
    );
  });
});

describe('the login group', () => {
  it('members of members, members past their time, NOLOGIN ones and privileged ones are named', async () => {
    const alice = roleOf('alice', 'login_map');
    await during(
      [
        `CREATE ROLE deputy LOGIN IN ROLE ${alice}`,
        `CREATE ROLE late LOGIN VALID UNTIL '2020-01-01' IN ROLE ${GROUP}`,
        `CREATE ROLE team NOLOGIN IN ROLE ${GROUP}`,
        `CREATE ROLE boss LOGIN BYPASSRLS IN ROLE ${GROUP}`,
        `GRANT ${alice} TO ${SERVICE}`,
      ],
      [
        'DROP ROLE deputy',
        'DROP ROLE late',
        'DROP ROLE team',
        'DROP ROLE boss',
        `REVOKE ${alice} FROM ${SERVICE}`,
      ],
      async () => {
        const report = await examine('login_map');
        const text = report.lines().join('\n');
        expect(text).toContain(`"deputy" are let in by "+${GROUP}" as members of members`);
        expect(text).toMatch(/whose VALID UNTIL is past, .*: "late"/);
        expect(text).toMatch(/that are NOLOGIN: .*"team"/);
        const wrong = wrongs(report).join('\n');
        expect(wrong).toContain('privileged: "boss"');
        expect(wrong).toContain(`"${SERVICE}" is let in by "+${GROUP}" too`);
      },
    );
  });

  it('one that is not there, and one that is not configured, are wrong', async () => {
    expect(
      wrongs(await examine('login_map', { turnstile: { login_group: 'nobody_here' } })).join('\n'),
    ).toContain('the login group "nobody_here" does not exist');
  });

  it('a role that may become another by GRANT leaves its role, and that is said', async () => {
    const [alice, bob] = [roleOf('alice', 'login_map'), roleOf('bob', 'login_map')];
    await during([`GRANT ${bob} TO ${alice}`], [`REVOKE ${bob} FROM ${alice}`], async () => {
      const report = await examine('login_map', { roles: [alice] });
      expect(wrongs(report).join('\n')).toContain(
        `role "${alice}": statements leave the role: "SET ROLE ${bob}"`,
      );
    });
  });
});

describe('logins', () => {
  it('login_map: a certificate of another name is refused by PostgreSQL, and the report says what to print', async () => {
    const stranger = makeCertificate({ name: 'stranger' });
    const general = {
      tls_server_certificate: scratchFile('stranger.crt', stranger.cert),
      tls_server_private_key: scratchFile('stranger.key', stranger.key),
    };
    const report = await examine('login_map', { general, roles: [roleOf('alice', 'login_map')] });
    expect(wrongs(report).join('\n')).toContain('cannot log in');
  });

  it('login_map: a role outside of the group is asked for a password, gets none, and the line is named', async () => {
    const alice = roleOf('alice', 'login_password');
    const report = await examine('login_map', { roles: [alice] });
    const text = wrongs(report).join('\n');
    expect(text).toContain(
      `login_map, role "${alice}" cannot log in: the server asks for more than the certificate`,
    );
  });

  it('login_password: a key of another generation is refused, and the fix is to run the printed SQL', async () => {
    const alice = roleOf('alice', 'login_password');
    const report = await examine('login_password', {
      turnstile: { backend_password_generation: 2 },
      roles: [alice],
    });
    expect(wrongs(report)).toEqual([
      expect.stringContaining(
        `login_password, role "${alice}" cannot log in: password authentication failed`,
      ),
    ]);
    expect(report.lines().join('\n')).toContain(`fix: pgturnstile sql provision --role ${alice}`);
  });

  it('a service user with a wrong password, a server that is not there, a database that is not there', async () => {
    const general = { jwt_server_password: newPassword() };
    expect(wrongs(await examine('set_role', { general })).join('\n')).toContain(
      `the service user "${SERVICE}" cannot log in`,
    );
    const { config } = world.config('set_role');
    const away = { ...config, databases: config.databases.map((row) => ({ ...row, port: 1 })) };
    const report = await runDoctor({ config: away, database: null, roles: [], scramKeys: new ScramKeys() });
    expect(report.healthy).toBe(false);
    await expect(
      runDoctor({ config, database: 'nowhere', roles: [], scramKeys: new ScramKeys() }),
    ).rejects.toThrow('no such database');
  });
});

describe('pg_hba.conf, where it may be read', () => {
  const grant = [
    `GRANT SELECT ON pg_hba_file_rules, pg_ident_file_mappings TO ${SERVICE}`,
    `GRANT EXECUTE ON FUNCTION pg_hba_file_rules(), pg_ident_file_mappings() TO ${SERVICE}`,
  ];
  const revoke = [
    `REVOKE ALL ON pg_hba_file_rules, pg_ident_file_mappings FROM ${SERVICE}`,
    `REVOKE ALL ON FUNCTION pg_hba_file_rules(), pg_ident_file_mappings() FROM ${SERVICE}`,
  ];

  it('cannot be read without a grant, and that is said, with SQL that can be pasted', async () => {
    const text = (await examine('login_map')).lines().join('\n');
    expect(text).toContain(`pg_hba.conf cannot be read as "${SERVICE}"`);
    expect(text).toContain(grant.join('; '));
  });

  it('a role that a client can be is not to be granted a sight of it', async () => {
    const alice = roleOf('alice', 'login_password');
    const report = await examine('login_password', {
      general: { jwt_server_password: newPassword() },
      roles: [alice],
    });
    const text = report.lines().join('\n');
    expect(text).toContain(`pg_hba.conf cannot be read as "${alice}"`);
    expect(text).toContain('fix: to see it, as a superuser: SELECT * FROM pg_hba_file_rules');
    expect(text).not.toContain('GRANT SELECT');
  });

  it('the printed lines are found; a missing reject line, trust and a missing map are wrong', async () => {
    await during(grant, revoke, async () => {
      const good = await examine('login_map');
      expect(wrongs(good)).toEqual([]);
      expect(good.lines().join('\n')).toMatch(
        /pg_hba.conf, line \d+: members of jwt_users log in by certificate/,
      );
      const cert = `hostssl all +${GROUP} 127.0.0.1/32 cert map=turnstile`;
      try {
        await world.postgres.setHba([cert, 'host all +others 127.0.0.1/32 trust']);
        const text = wrongs(await examine('login_map')).join('\n');
        expect(text).toContain('may log in by other ways too');
        expect(text).toContain('trust lets whoever reaches the server be anybody');
        await world.postgres.setHba([`host all +${GROUP} all reject`]);
        expect(wrongs(await examine('login_map')).join('\n')).toContain(`no line with cert for +${GROUP}`);
        world.writeIdent(['turnstile somebody-else +jwt_users']);
        await world.postgres.setHba([cert, `host all +${GROUP} all reject`]);
        expect(wrongs(await examine('login_map')).join('\n')).toContain(
          `pg_ident.conf maps nothing from "${COMMON_NAME}"`,
        );
      } finally {
        world.writeIdent([`turnstile ${COMMON_NAME} +${GROUP}`]);
        await world.postgres.setHba([cert, `host all +${GROUP} all reject`]);
      }
    });
  });
});

describe('what is asked of tokens', () => {
  it('no issuer and any audience are wrong', async () => {
    const { config } = world.config('set_role');
    const open = {
      ...config,
      jwt: { ...config.jwt, audience: null },
      turnstile: { ...config.turnstile, jwtIssuer: null },
    };
    const report = await runDoctor({ config: open, database: null, roles: [], scramKeys: new ScramKeys() });
    const text = wrongs(report).join('\n');
    expect(text).toContain('no issuer is pinned');
    expect(text).toContain('any audience is taken');
  });
});
