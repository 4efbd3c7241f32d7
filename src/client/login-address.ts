/**
 * Where a client comes from, as rules and budgets see it: IPv4 in IPv6 is IPv4, a zone is dropped, and a Unix socket
 * has no address. It knows neither rule nor budget. Pure.
 */
import { BlockList, isIP, isIPv4, isIPv6 } from 'node:net';

/** The prefix of IPv4 addresses mapped into IPv6 (RFC 4291 section 2.5.5.2). */
const MAPPED = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i;
const MAPPED_PREFIX_BITS = 96;

/** The address without zone, IPv4 where it is IPv4; '' for a Unix socket. */
export function foldAddress(address: string): string {
  // Every address of IPv6 has a colon, and no other has.
  if (!address.includes(':')) return address;
  const bare = address.split('%', 1)[0] as string;
  return MAPPED.exec(bare)?.[1] ?? bare;
}

/**
 * Whom a budget counts as one: an IPv4 address, or the /64 of an IPv6 address, since one household or host has the
 * whole of it (RFC 6177).
 */
export function addressGroup(remoteAddress: string): string {
  const address = foldAddress(remoteAddress);
  if (!address.includes(':') || !isIPv6(address)) return address;
  const [head = '', tail] = address.toLowerCase().split('::', 2);
  const left = head === '' ? [] : head.split(':');
  const right = tail === undefined || tail === '' ? [] : tail.split(':');
  // A dotted end stands for two groups; it never reaches into the first four of them but in "::1.2.3.4".
  const groupCount = left.length + right.length + Number(right.at(-1)?.includes('.') ?? false);
  const zeros = tail === undefined ? [] : new Array<string>(Math.max(0, 8 - groupCount)).fill('0');
  const groups = [...left, ...zeros, ...right].slice(0, 4);
  return `${groups.map((group) => group.replace(/^0+(?=.)/, '')).join(':')}::/64`;
}

/** Tells whether an address is in the list. */
export type AddressTest = (remoteAddress: string) => boolean;

/**
 * Compiles addresses and CIDR ranges. Throws `RangeError` with a sentence for an entry that is neither. An empty list
 * holds nothing, and a Unix socket is in no list.
 */
export function compileAddresses(entries: readonly string[]): AddressTest {
  // One list a family: in a shared one `::/0` would hold every IPv4 address too, which in PostgreSQL it does not.
  const lists = { ipv4: new BlockList(), ipv6: new BlockList() };
  for (const entry of entries) {
    const { family, address, bits } = readEntry(entry);
    lists[family].addSubnet(address, bits, family);
  }
  return (remoteAddress) => {
    const address = foldAddress(remoteAddress);
    if (isIP(address) === 0) return false;
    const family = familyOf(address);
    return lists[family].check(address, family);
  };
}

function readEntry(entry: string): { family: 'ipv4' | 'ipv6'; address: string; bits: number } {
  const [address = '', prefix, more] = entry.split('/');
  const family = familyOf(address);
  const bitsMax = family === 'ipv4' ? 32 : 128;
  const bits = prefix === undefined ? bitsMax : /^\d{1,3}$/.test(prefix) ? Number(prefix) : -1;
  if (isIP(address) === 0 || address.includes('%') || more !== undefined || bits < 0 || bits > bitsMax) {
    throw new RangeError(`"${entry}" is neither an address nor a range such as 10.0.0.0/8`);
  }
  const mapped = mappedAddress(address);
  if (mapped === null || bits < MAPPED_PREFIX_BITS) return { family, address, bits };
  return { family: 'ipv4', address: mapped, bits: bits - MAPPED_PREFIX_BITS };
}

/** The IPv4 address in an IPv6 one, in whichever of its spellings; null when there is none. */
function mappedAddress(address: string): string | null {
  if (!isIPv6(address)) return null;
  const groups = /^\[::ffff:([0-9a-f]+):([0-9a-f]+)\]$/.exec(new URL(`http://[${address}]/`).hostname);
  if (groups === null) return null;
  const bytes = groups.slice(1).flatMap((group) => {
    const value = Number.parseInt(group, 16);
    return [value >> 8, value & 0xff];
  });
  return bytes.join('.');
}

function familyOf(address: string): 'ipv4' | 'ipv6' {
  return isIPv4(address) ? 'ipv4' : 'ipv6';
}
