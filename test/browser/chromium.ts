// A small client of headless Chromium over its DevTools protocol, by pipes: no port is opened, and the
// browser ends when its pipe does. Knows pages, evaluation, input, screenshots; nothing of reports.
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';

type Values = Record<string, unknown>;
type Listener = (method: string, params: Values, session: string | undefined) => void;

const ANSWER_MS = 120_000;

/** One browser with a profile of its own. */
export class Chromium {
  readonly #process: ChildProcess;
  readonly #profile: string;
  readonly #to: Writable;
  readonly #waiting = new Map<number, (answer: Values) => void>();
  readonly #listeners = new Set<Listener>();
  #last = 0;
  #unread = '';
  #stderr = '';
  #ended = false;

  private constructor(process: ChildProcess, profile: string) {
    this.#process = process;
    this.#profile = profile;
    this.#to = process.stdio[3] as Writable;
    // The browser may go first; whoever waits for an answer is told so below.
    this.#to.on('error', () => undefined);
    (process.stdio[4] as Readable).setEncoding('utf8').on('data', (text) => this.#read(text));
    process.stderr?.setEncoding('utf8').on('data', (text) => {
      this.#stderr = (this.#stderr + text).slice(-4000);
    });
    const gone = () => {
      this.#ended = true;
      for (const answer of this.#waiting.values()) {
        answer({ error: { message: `chromium has ended: ${this.#stderr}` } });
      }
    };
    process.on('exit', gone);
    process.on('error', (error) => {
      this.#stderr += `${error.message}; install Debian's chromium`;
      gone();
    });
  }

  /** Starts Debian's chromium (CHROMIUM names another one). */
  static async start(): Promise<Chromium> {
    const profile = await mkdtemp(join(tmpdir(), 'firstlight-chromium-'));
    const args = [
      '--headless=new',
      // Its sandbox refuses to run as root; what the tests open is our own.
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--force-device-scale-factor=1',
      '--hide-scrollbars',
      `--user-data-dir=${profile}`,
      '--remote-debugging-pipe',
      'about:blank',
    ];
    const stdio = ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'] as const;
    // A group of its own, so that closing it reaches the processes that it starts.
    const child = spawn(process.env.CHROMIUM ?? 'chromium', args, {
      stdio: [...stdio],
      detached: true,
    });
    const browser = new Chromium(child, profile);
    await browser.send('Browser.getVersion');
    return browser;
  }

  #read(text: string): void {
    const messages = (this.#unread + text).split('\0');
    this.#unread = messages.pop() ?? '';
    for (const message of messages) {
      const value = JSON.parse(message) as Values;
      if (typeof value.id === 'number') {
        this.#waiting.get(value.id)?.(value);
        this.#waiting.delete(value.id);
      } else {
        const session = value.sessionId as string | undefined;
        for (const listener of this.#listeners) {
          listener(String(value.method), (value.params ?? {}) as Values, session);
        }
      }
    }
  }

  /** Calls a method of the protocol. */
  async send(method: string, params: Values = {}, sessionId?: string): Promise<Values> {
    const id = ++this.#last;
    const { promise, resolve } = Promise.withResolvers<Values>();
    this.#waiting.set(id, resolve);
    const tooLong = setTimeout(
      () => resolve({ error: { message: `no answer in ${ANSWER_MS} ms` } }),
      ANSWER_MS,
    );
    if (this.#ended) resolve({ error: { message: `chromium has ended: ${this.#stderr}` } });
    else this.#to.write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    const answer = await promise;
    clearTimeout(tooLong);
    this.#waiting.delete(id);
    if (answer.error !== undefined) {
      throw new Error(`${method}: ${(answer.error as { message: string }).message}`);
    }
    return (answer.result ?? {}) as Values;
  }

  /** Hears of events until the returned function is called. */
  listen(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  /** Ends the browser and removes its profile. */
  async close(): Promise<void> {
    const { pid } = this.#process;
    if (!this.#ended && pid !== undefined) {
      const exited = new Promise((resolve) => this.#process.once('exit', resolve));
      await this.send('Browser.close').catch(() => process.kill(-pid, 'SIGKILL'));
      const kill = setTimeout(() => process.kill(-pid, 'SIGKILL'), 5000);
      await exited;
      clearTimeout(kill);
    }
    await rm(this.#profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

/** What a page looks like from outside. */
export interface PageOptions {
  width: number;
  height: number;
  dark?: boolean;
  /** False: the page's scripts do not run. */
  scripts?: boolean;
}

/** One tab. Collects what it asks of the network and every error. */
export class Tab {
  readonly #browser: Chromium;
  readonly #session: string;
  readonly #target: string;
  readonly #stop: () => void;
  /** URLs asked for, the page's own included. */
  readonly requests: string[] = [];
  /** Exceptions, errors on the console, breaches of the page's policy. */
  readonly errors: string[] = [];
  #loaded = Promise.withResolvers<void>();

  private constructor(browser: Chromium, target: string, session: string) {
    this.#browser = browser;
    this.#target = target;
    this.#session = session;
    this.#stop = browser.listen((method, params, from) => {
      if (from === session) this.#hear(method, params);
    });
  }

  static async open(browser: Chromium, options: PageOptions): Promise<Tab> {
    const { targetId } = await browser.send('Target.createTarget', { url: 'about:blank' });
    const { sessionId } = await browser.send('Target.attachToTarget', { targetId, flatten: true });
    const tab = new Tab(browser, String(targetId), String(sessionId));
    for (const domain of ['Page', 'Runtime', 'Network', 'Log']) await tab.send(`${domain}.enable`);
    await tab.look(options);
    return tab;
  }

  #hear(method: string, params: Values): void {
    if (method === 'Page.loadEventFired') this.#loaded.resolve();
    if (method === 'Network.requestWillBeSent') {
      this.requests.push((params.request as { url: string }).url);
    }
    if (method === 'Runtime.exceptionThrown') this.errors.push(JSON.stringify(params));
    if (method === 'Log.entryAdded') {
      const { level, text } = params.entry as { level: string; text: string };
      if (level === 'error' || level === 'warning') this.errors.push(text);
    }
    if (method === 'Runtime.consoleAPICalled' && params.type === 'error') {
      this.errors.push(JSON.stringify(params.args));
    }
  }

  send(method: string, params: Values = {}): Promise<Values> {
    return this.#browser.send(method, params, this.#session);
  }

  /** Size, colour scheme, and whether scripts run. */
  async look({ width, height, dark = false, scripts = true }: PageOptions): Promise<void> {
    const mobile = false;
    await this.send('Emulation.setDeviceMetricsOverride', {
      width,
      height,
      deviceScaleFactor: 1,
      mobile,
    });
    const features = [{ name: 'prefers-color-scheme', value: dark ? 'dark' : 'light' }];
    await this.send('Emulation.setEmulatedMedia', { features });
    await this.send('Emulation.setScriptExecutionDisabled', { value: !scripts });
  }

  /** Cuts the tab off from every network. */
  async offline(): Promise<void> {
    const none = { offline: true, latency: 0, downloadThroughput: -1, uploadThroughput: -1 };
    await this.send('Network.emulateNetworkConditions', none);
  }

  /** Loads a page, and waits until it has been drawn. */
  async goto(url: string): Promise<void> {
    this.#loaded = Promise.withResolvers();
    const { errorText } = await this.send('Page.navigate', { url });
    if (errorText !== undefined) throw new Error(`${url}: ${errorText}`);
    await this.#loaded.promise;
  }

  /** Value of an expression in the page. */
  async evaluate<T>(expression: string): Promise<T> {
    const options = { expression, returnByValue: true, awaitPromise: true };
    const { result, exceptionDetails } = await this.send('Runtime.evaluate', options);
    if (exceptionDetails !== undefined) throw new Error(JSON.stringify(exceptionDetails));
    return (result as { value: T }).value;
  }

  /** Waits until a frame has been drawn with all that was changed before. */
  async drawn(): Promise<void> {
    await this.evaluate(
      'new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))',
    );
  }

  /** One event of the mouse, at pixels of the view. */
  async mouse(
    type: 'mousePressed' | 'mouseReleased' | 'mouseMoved',
    x: number,
    y: number,
    clickCount = 1,
  ): Promise<void> {
    const button = type === 'mouseMoved' ? 'none' : 'left';
    await this.send('Input.dispatchMouseEvent', { type, x, y, button, clickCount });
  }

  async drag(from: { x: number; y: number }, to: { x: number; y: number }): Promise<void> {
    await this.mouse('mouseMoved', from.x, from.y);
    await this.mouse('mousePressed', from.x, from.y);
    await this.mouse('mouseMoved', to.x, to.y);
    await this.mouse('mouseReleased', to.x, to.y);
    await this.drawn();
  }

  /** PNG of the whole page, or of what is in view. */
  async screenshot(whole = true): Promise<Buffer> {
    const options = { format: 'png', captureBeyondViewport: whole };
    const { contentSize } = await this.send('Page.getLayoutMetrics').then((metrics) => ({
      contentSize: metrics.cssContentSize as { width: number; height: number },
    }));
    const clip = { x: 0, y: 0, ...contentSize, scale: 1 };
    const { data } = await this.send(
      'Page.captureScreenshot',
      whole ? { ...options, clip } : options,
    );
    return Buffer.from(String(data), 'base64');
  }

  async close(): Promise<void> {
    this.#stop();
    await this.#browser.send('Target.closeTarget', { targetId: this.#target });
  }
}
