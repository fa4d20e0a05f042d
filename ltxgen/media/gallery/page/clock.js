// One clock that all videos on the screen follow, and the sound of at most one of them.
const STALL_SECONDS = 2; // how long the clock waits for a video that is still loading

const clock = {
  time: 0,
  playing: false,
  rate: 1,
  loop: true,
  followers: new Map(), // video element -> its run
  listeners: [],
  stalled: 0,
  last: 0,

  get duration() {
    const open = isPairOpen() ? [pair.a, pair.b] : wantedRuns();
    return Math.max(0, ...open.filter(Boolean).map(durationOf));
  },
  get fps() {
    const run = [...this.followers.values()][0] ?? RUNS.find((each) => each.video);
    return run?.video?.fps ?? 24;
  },
  get frame() {
    return Math.floor(this.time * this.fps + 1e-4);
  },

  play() {
    if (this.time >= this.duration - 0.5 / this.fps) this.time = 0;
    this.playing = this.duration > 0;
    this.last = performance.now();
    this.stalled = 0;
    this.show();
    requestAnimationFrame((now) => this.tick(now));
  },
  pause() {
    this.playing = false;
    this.show();
  },
  toggle() {
    this.playing ? this.pause() : this.play();
  },
  seek(time) {
    this.time = Math.min(Math.max(0, time), this.duration);
    this.show();
  },
  // Stops at the middle of a frame, where rounding can't show its neighbour.
  step(frames) {
    const last = Math.max(0, Math.round(this.duration * this.fps) - 1);
    this.playing = false;
    this.seek((Math.min(Math.max(0, this.frame + frames), last) + 0.5) / this.fps);
  },

  tick(now) {
    if (!this.playing) return;
    const passed = Math.min(0.25, (now - this.last) / 1000);
    this.last = now;
    const loading = [...this.followers.keys()].some((video) => !video.error && video.readyState < 2);
    this.stalled = loading ? this.stalled + passed : 0;
    if (!loading || this.stalled > STALL_SECONDS) this.time += passed * this.rate;
    if (this.time >= this.duration) {
      if (this.loop && this.duration > 0) this.time %= this.duration;
      else [this.time, this.playing] = [this.duration, false];
    }
    this.show();
    if (this.playing) requestAnimationFrame((next) => this.tick(next));
  },
  show() {
    for (const [video, run] of this.followers) follow(video, run);
    for (const listener of this.listeners) listener();
  },

  add(video, run) {
    this.followers.set(video, run);
    // A seek that came while the video was busy with another one.
    video.onseeked = video.onloadeddata = () => follow(video, run);
    sound.apply();
    follow(video, run);
  },
  remove(video) {
    this.followers.delete(video);
    video.pause();
  },
};

function follow(video, run) {
  if (video.readyState < 1) return;
  const last = (run.video.num_frames - 0.5) / run.video.fps;
  if (clock.playing && clock.time < last) {
    const drift = video.currentTime - clock.time;
    if (Math.abs(drift) > 0.2) goTo(video, clock.time);
    video.playbackRate = clock.rate * (1 - Math.max(-0.2, Math.min(0.2, Math.abs(drift) > 0.015 ? drift * 2 : 0)));
    if (video.paused) video.play().catch(() => sound.refused(video));
  } else {
    if (!video.paused) video.pause();
    const frame = Math.floor(clock.time * run.video.fps + 1e-4);
    goTo(video, Math.min((frame + 0.5) / run.video.fps, last));
  }
}

function goTo(video, time) {
  if (!video.seeking && Math.abs(video.currentTime - time) > 1e-3) video.currentTime = time;
}

// Silent but for the video under the pointer or with the focus, or the one whose speaker was pressed.
const sound = {
  on: true,
  hovered: null,
  pinned: null,
  apply() {
    const audible = this.on ? (this.pinned ?? this.hovered) : null;
    for (const video of clock.followers.keys()) {
      // A browser pauses a video that is unmuted before the reader has touched the page.
      const may = navigator.userActivation ? navigator.userActivation.hasBeenActive : true;
      video.muted = video !== audible || !may;
    }
  },
  hover(video) {
    this.hovered = video;
    this.apply();
  },
  refused(video) {
    video.muted = true;
  },
};
