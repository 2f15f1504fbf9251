// got, which reads no proxy variable; and once with an agent of its own that does its own CONNECT.
import got from 'got';
import { HttpsProxyAgent } from 'hpagent';

const any = { throwHttpErrors: false, retry: { limit: 0 } };
const answer = await got.post(process.env.UPGRADED, { json: { card: '4111111111111111', name: 'x' }, ...any });
console.log('upgraded', answer.statusCode);
const agent = { https: new HttpsProxyAgent({ proxy: process.env.https_proxy, keepAlive: false }) };
console.log('inspected', (await got(process.env.INSPECTED, { agent, ...any })).statusCode);
for (const name of ['tunnelled', 'refused']) {
  console.log(name, (await got(process.env[name.toUpperCase()], any)).statusCode);
}
process.exit(0);
