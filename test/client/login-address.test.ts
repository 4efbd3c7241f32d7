import { describe, expect, test } from 'vitest';
import { addressGroup, compileAddresses, foldAddress } from '../../src/client/login-address.ts';

test.each([
  ['127.0.0.1', '127.0.0.1'],
  ['::ffff:10.1.2.3', '10.1.2.3'],
  ['::FFFF:10.1.2.3', '10.1.2.3'],
  ['fe80::1%eth0', 'fe80::1'],
  ['', ''],
])('%j is %j', (address, folded) => {
  expect(foldAddress(address)).toBe(folded);
});

test.each([
  ['10.1.2.3', '10.1.2.3'],
  ['::ffff:10.1.2.3', '10.1.2.3'],
  ['2001:db8:1:2:3:4:5:6', '2001:db8:1:2::/64'],
  ['2001:DB8:1:2::', '2001:db8:1:2::/64'],
  ['2001:db8:0001:0002::9', '2001:db8:1:2::/64'],
  ['2001:db8::2:0:0:0:9', '2001:db8:0:2::/64'],
  ['2001:db8::1', '2001:db8:0:0::/64'],
  ['::1', '0:0:0:0::/64'],
  ['::', '0:0:0:0::/64'],
  ['fe80::1%eth0', 'fe80:0:0:0::/64'],
  ['64:ff9b::1.2.3.4', '64:ff9b:0:0::/64'],
  ['::1.2.3.4', '0:0:0:0::/64'],
  ['', ''],
])('a budget counts %j as %j', (address, group) => {
  expect(addressGroup(address)).toBe(group);
});

describe('a list of addresses', () => {
  const entries = ['10.0.0.0/8', '192.0.2.7', '2001:db8::/32', '::ffff:172.16.0.0/108', '::1'];
  const isIn = compileAddresses(entries);

  test.each([
    ['10.255.255.255', true],
    ['::ffff:10.0.0.1', true],
    ['11.0.0.0', false],
    ['192.0.2.7', true],
    ['192.0.2.8', false],
    ['2001:db8:ffff::1', true],
    ['2001:db9::1', false],
    ['172.31.9.9', true],
    ['172.32.0.1', false],
    ['::1', true],
    ['::2', false],
    ['', false],
    ['garbage', false],
  ])('holds %j: %s', (address, held) => {
    expect(isIn(address)).toBe(held);
  });

  test('every IPv6 address is not every IPv4 address, nor the other way', () => {
    const [all6, all4] = [compileAddresses(['::/0']), compileAddresses(['0.0.0.0/0'])];
    expect([all6('2001:db8::1'), all6('10.0.0.1'), all6('::ffff:10.0.0.1')]).toEqual([true, false, false]);
    expect([all4('2001:db8::1'), all4('10.0.0.1'), all4('::ffff:10.0.0.1')]).toEqual([false, true, true]);
  });

  test('without entries holds nothing', () => {
    expect(compileAddresses([])('10.0.0.1')).toBe(false);
  });

  test.each([
    '10.0.0',
    '10.0.0.0/33',
    '10.0.0.0/',
    '10.0.0.0/8/8',
    '10.0.0.0/-1',
    '10.0.0.0/8x',
    '::1/129',
    'fe80::1%eth0',
    'localhost',
    '',
    '/8',
  ])('%j is no entry', (entry) => {
    expect(() => compileAddresses([entry])).toThrow(RangeError);
  });
});
