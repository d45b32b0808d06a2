// Receives one image into a store and says how far it is, until it is done or killed.
// Arguments: root, server, reference. Prints lines: "open FRAMES_DONE",
// "frames FRAMES_DONE" as they come, "complete BYTES_RECEIVED".
import { makeLogger } from '../../src/log/log.ts';
import { Receiver } from '../../src/receive/receiver.ts';
import { LayerStore } from '../../src/store/layer-store.ts';
import { WatchingTemplate } from './fixture.ts';

const [root, server, ref] = process.argv.slice(2) as [string, string, string];
const log = makeLogger('child');
const store = await LayerStore.open(root, { log });
let template: WatchingTemplate | undefined;
const receiver = await Receiver.open(store, {
  server,
  ref,
  platform: 'linux/amd64',
  log,
  makeTemplate: (options) => {
    template = new WatchingTemplate(options);
    return template;
  },
});
let told = receiver.progress().framesDone;
console.log(`open ${told}`);
const telling = setInterval(() => {
  const { framesDone } = receiver.progress();
  if (framesDone !== told) console.log(`frames ${framesDone}`);
  told = framesDone;
}, 5);
await receiver.complete;
clearInterval(telling);
if (template!.violations.length > 0) throw new Error(template!.violations.join('\n'));
console.log(`complete ${receiver.progress().receivedBytes}`);
await receiver.close();
await store.close();
