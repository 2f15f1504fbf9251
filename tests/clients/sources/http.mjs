// Node.js' own http and https, as most libraries use them: with the default agent, and with a plain one of their own.
import http from 'node:http';
import https from 'node:https';

function ask(name, agent, body) {
  const url = new URL(process.env[name.toUpperCase()]);
  const module = url.protocol === 'https:' ? https : http;
  const headers = body ? { 'content-type': 'application/json', 'content-length': body.length } : {};
  return new Promise((resolve) => {
    module
      .request(url, { method: body ? 'POST' : 'GET', headers, agent }, (response) => {
        response.resume().on('end', () => resolve(console.log(name, response.statusCode)));
      })
      .on('error', (error) => resolve(console.log(name, error.message)))
      .end(body);
  });
}

await ask('upgraded', new http.Agent({ keepAlive: true }), '{"card": "4111111111111111", "name": "x"}');
await ask('inspected');
await ask('tunnelled', new https.Agent({ keepAlive: true }));
await ask('refused');
process.exit(0);
