// One request of Node's http2, through a proxy or not. The job is JSON on standard input, the answer on standard output.
import http from 'node:http';
import http2 from 'node:http2';
import tls from 'node:tls';
import { readFileSync } from 'node:fs';

const job = JSON.parse(readFileSync(0, 'utf8'));
const url = new URL(job.url);
const isTls = url.protocol === 'https:';
const authority = `${url.hostname}:${url.port}`;

function overTls(socket) {
  return tls.connect({ socket, servername: url.hostname, ALPNProtocols: ['h2'], ca: readFileSync(job.ca) });
}

function tunnel() {
  return new Promise((resolve, reject) => {
    const proxy = new URL(job.proxy);
    http
      .request({ host: proxy.hostname, port: proxy.port, method: 'CONNECT', path: authority, headers: { host: authority } })
      .on('connect', (_, socket) => resolve(isTls ? overTls(socket) : socket))
      .on('error', reject)
      .end();
  });
}

const connection = job.proxy ? await tunnel() : null;
const session = http2.connect(url.origin, connection ? { createConnection: () => connection } : {});
const answer = { status: 0, headers: {}, interim: [], trailers: {}, body: '' };
const stream = session.request(
  { ':method': job.method, ':path': url.pathname, ...job.headers },
  { endStream: job.body === null },
);
const pieces = [];
stream.on('headers', (headers) => answer.interim.push(headers[':status']));
stream.on('response', (headers) => {
  answer.status = headers[':status'];
  answer.headers = { ...headers };
});
stream.on('trailers', (trailers) => (answer.trailers = { ...trailers }));
stream.on('data', (piece) => pieces.push(piece));
await new Promise((resolve, reject) => {
  stream.on('close', resolve).on('error', reject);
  session.on('error', reject);
  if (job.body !== null) {
    const body = Buffer.from(job.body, 'base64');
    const half = body.length >> 1;
    stream.write(body.subarray(0, half), () => stream.end(body.subarray(half)));
  }
});
answer.body = Buffer.concat(pieces).toString('base64');
process.stdout.write(JSON.stringify(answer));
session.close();
