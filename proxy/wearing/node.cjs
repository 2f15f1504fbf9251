// Makes versions of Node.js that do not read the proxy variables by themselves (before 22.21, and 24.0 to 24.4) send
// their requests to the proxy that https_proxy and http_proxy name. NODE_OPTIONS loads it: --require node.cjs.
//
// - What has an agent, dispatcher or connection of its own that says how to connect is left alone: only Node's own way to
//   connect is changed. So is whatever connects to the proxy itself, or asks some proxy with CONNECT.
// - NO_PROXY is honoured. A request that is to go through the proxy never goes past it: where that fails, it fails.
// - Plain http goes to the proxy as any client sends it (absolute form); https, and what cannot be sent so, by CONNECT.
'use strict'

const [major, minor] = process.versions.node.split('.').map(Number)
const isBuiltIn = major > 24 || (major === 24 && minor >= 5) || (major === 22 && minor >= 21)
const proxies = { 'http:': read('http_proxy'), 'https:': read('https_proxy') }
if (!isBuiltIn && (proxies['http:'] || proxies['https:'])) {
  const passed = exceptions((process.env.no_proxy || process.env.NO_PROXY || '').toLowerCase())
  changeAgents(passed)
  if (typeof fetch === 'function') changeFetch(passed)
}

function read(name) {
  try {
    const url = new URL(process.env[name] || process.env[name.toUpperCase()])
    return url.protocol === 'http:' ? url : undefined
  } catch {
    return undefined // there is none
  }
}

// Returns a function that tells whether a host goes past the proxy.
function exceptions(text) {
  const entries = text.split(/[\s,]+/).filter(Boolean).map(entry => {
    const [, host, port] = /^(\[.*\]|[^:]*|.*:.*:.*?)(?::(\d+))?$/.exec(entry) || [, entry]
    return { host: bare(host).replace(/^\*?\./, ''), port }
  })
  return (host, port) => entries.some(entry =>
    (!entry.port || entry.port === String(port)) &&
    (entry.host === '*' || host === entry.host || host.endsWith(`.${entry.host}`)))
}

function bare(host) {
  return host.replace(/^\[(.*)\]$/, '$1')
}

// Returns the proxy for a host, or undefined where the request is to go there directly.
function proxyFor(protocol, host, port, passed) {
  const proxy = proxies[protocol]
  if (!proxy || !host) return undefined
  host = bare(String(host).toLowerCase())
  const isProxy = Object.values(proxies).some(each => each && bare(each.hostname) === host && portOf(each) === Number(port))
  return isProxy || passed(host, port) ? undefined : proxy
}

function portOf(proxy) {
  return Number(proxy.port || 80)
}

function authority(host, port) {
  host = bare(String(host))
  return `${host.includes(':') ? `[${host}]` : host}:${port}`
}

function credentials(proxy) {
  if (!proxy.username) return {}
  const pair = `${decodeURIComponent(proxy.username)}:${decodeURIComponent(proxy.password)}`
  return { 'Proxy-Authorization': `Basic ${Buffer.from(pair).toString('base64')}` }
}

// Asks the proxy for a tunnel; calls back with an error, or with the socket.
function tunnel(proxy, host, port, done) {
  const http = require('node:http')
  const target = authority(host, port)
  const request = http.request({
    agent: false, host: bare(proxy.hostname), port: portOf(proxy), method: 'CONNECT', path: target,
    headers: { Host: target, ...credentials(proxy) }
  })
  request.once('error', done)
  request.once('response', refused) // a refusal that is no answer to CONNECT
  request.once('connect', (response, socket, head) => {
    if (response.statusCode !== 200) {
      socket.destroy()
      return refused(response)
    }
    if (head.length) socket.unshift(head)
    done(null, socket)
  })
  request.end()

  function refused(response) {
    const said = String(response.headers['proxy-status'] || '').slice(0, 200)
    const error = new Error(`the proxy refused ${target}: ${response.statusCode} ${response.statusMessage} ${said}`.trim())
    error.code = 'ERR_PROXY_TUNNEL'
    done(error)
  }
}

function changeAgents(passed) {
  const http = require('node:http')
  const https = require('node:https')
  const { addRequest, createConnection, createSocket } = http.Agent.prototype
  const connectSecurely = https.Agent.prototype.createConnection

  // Whether an agent connects as Node's own do.
  const isPlain = agent => agent.createConnection === http.Agent.prototype.createConnection &&
    agent.createSocket === createSocket && agent.addRequest === http.Agent.prototype.addRequest

  http.Agent.prototype.addRequest = function (request, options, ...rest) {
    const target = typeof options === 'object' ? options : { host: options, port: rest[0] }
    const host = target.host || target.hostname || 'localhost'
    const proxy = isPlain(this) && this.protocol === 'http:' && request.method !== 'CONNECT' && !target.socketPath
      ? proxyFor('http:', host, target.port, passed)
      : undefined
    if (!proxy || request._header || target !== options) return addRequest.call(this, request, options, ...rest)
    request.path = `http://${target.port === 80 ? authority(host, 80).slice(0, -3) : authority(host, target.port)}${request.path}`
    for (const [name, value] of Object.entries(credentials(proxy))) request.setHeader(name, value)
    return addRequest.call(this, request, { ...options, host: bare(proxy.hostname), hostname: undefined, port: portOf(proxy) })
  }

  // Only what could not be sent in absolute form gets here with another target than the proxy.
  http.Agent.prototype.createConnection = function (options, done) {
    const proxy = this.protocol === 'http:' && !options.socketPath && isPlain(this) && options.method !== 'CONNECT'
      ? proxyFor('http:', options.host, options.port, passed)
      : undefined
    if (!proxy || typeof done !== 'function') return createConnection.apply(this, arguments)
    tunnel(proxy, options.host, options.port, done)
    return undefined
  }

  https.Agent.prototype.createConnection = function (options, done) {
    const proxy = typeof options === 'object' && options && !options.socket && !options.socketPath
      ? proxyFor('https:', options.host, options.port, passed)
      : undefined
    if (!proxy || typeof done !== 'function') return connectSecurely.apply(this, arguments)
    tunnel(proxy, options.host, options.port, (error, socket) => {
      if (error) return done(error)
      let secure
      try {
        secure = connectSecurely.call(this, { ...options, socket })
      } catch (wrong) { // of the caller's options
        socket.destroy()
        return done(wrong)
      }
      done(null, secure)
    })
    return undefined
  }
}

function changeFetch(passed) {
  const place = Symbol.for('undici.globalDispatcher.1')
  void globalThis.Response // loads fetch, which then has its dispatcher
  const before = globalThis[place]
  if (!before) return
  const net = require('node:net')
  const tls = require('node:tls')

  function connect(options, done) {
    const port = Number(options.port || (options.protocol === 'https:' ? 443 : 80))
    const proxy = proxyFor(options.protocol, options.hostname, port, passed)
    const socket = options.httpSocket
    if (proxy && !socket) {
      return tunnel(proxy, options.hostname, port, (error, made) => error ? done(error) : secured(made, true))
    }
    return socket ? secured(socket, true)
      : secured(net.connect({ host: bare(options.hostname), port, localAddress: options.localAddress }), false)

    function secured(plain, isOpen) {
      plain.setNoDelay(true)
      if (options.protocol !== 'https:') return ready(plain, 'connect', isOpen)
      const host = bare(options.hostname)
      const servername = options.servername || (net.isIP(host) ? '' : host)
      ready(tls.connect({ host, servername, ALPNProtocols: ['http/1.1'], socket: plain }), 'secureConnect', false)
    }

    function ready(made, event, isOpen) {
      if (isOpen) return done(null, made)
      made.once('error', done)
      made.once(event, () => {
        made.off('error', done)
        done(null, made)
      })
    }
  }

  globalThis[place] = new before.constructor({ connect })
}
